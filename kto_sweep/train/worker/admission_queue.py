"""The one queue in which a worker's trials wait. Thread-safe; no torch here."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kto_sweep.train.trial.request import TrialRequest

if TYPE_CHECKING:
    from kto_sweep.train.trial.training import TrialTraining

PATIENCE = 8
"""Later trials that may be admitted before a waiting one; after that none passes it."""


@dataclass(eq=False)
class PendingTrial:
    """A trial that waits."""

    request: TrialRequest
    training: "TrialTraining | None" = None
    """Of a trial that was detached for lack of memory: it continues from there."""
    passed: int = 0
    """Later trials that were admitted first."""


class AdmissionQueue:
    """First come, first served, except that trials that fit beside the active ones need not wait for others.

    A trial that needs another base model waits until the worker is empty. Only PATIENCE later trials may pass
    it, so that the worker becomes empty.
    """

    def __init__(self, patience: int = PATIENCE) -> None:
        self._patience = patience
        self._pending: list[PendingTrial] = []
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._pending)

    def put(self, request: TrialRequest) -> None:
        """Add a new trial at the end."""
        with self._changed:
            self._pending.append(PendingTrial(request))
            self._changed.notify()

    def put_first(self, request: TrialRequest) -> None:
        """Add a trial at the front, which `first` removed."""
        with self._changed:
            self._pending.insert(0, PendingTrial(request))

    def put_back(self, training: "TrialTraining") -> None:
        """Add a detached trial at the front: it is the next one that fits."""
        with self._changed:
            self._pending.insert(0, PendingTrial(training.request, training=training))

    def wait(self) -> None:
        """Block until a trial waits, or the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._pending)

    def close(self) -> None:
        """Wake up `wait`: no trial will come."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def next(self, fits: Callable[[PendingTrial], bool]) -> PendingTrial | None:
        """Remove and return the first trial that fits and may pass those before it; None without one."""
        with self._changed:
            at = self._next(fits)
            if at is None:
                return None
            for earlier in self._pending[:at]:
                earlier.passed += 1
            return self._pending.pop(at)

    def has_next(self, fits: Callable[[PendingTrial], bool]) -> bool:
        """Whether `next` would return a trial."""
        with self._changed:
            return self._next(fits) is not None

    def _next(self, fits: Callable[[PendingTrial], bool]) -> int | None:
        for at, pending in enumerate(self._pending):
            if fits(pending):
                return at
            if pending.passed >= self._patience:
                return None
        return None

    def first(self) -> PendingTrial | None:
        """Remove and return the trial that has waited longest; None when the queue is empty."""
        with self._changed:
            return self._pending.pop(0) if self._pending else None

    def take_stopped(self) -> list[PendingTrial]:
        """Remove and return the trials that were told to stop."""
        with self._changed:
            stopped = [pending for pending in self._pending if pending.request.should_stop()]
            self._pending = [pending for pending in self._pending if pending not in stopped]
            return stopped

    def count(self, fits: Callable[[PendingTrial], bool]) -> int:
        """Number of waiting trials that fit."""
        with self._changed:
            return sum(map(fits, self._pending))

    def detached(self) -> "list[TrialTraining]":
        """The trials that were detached, in their order."""
        with self._changed:
            return [pending.training for pending in self._pending if pending.training is not None]
