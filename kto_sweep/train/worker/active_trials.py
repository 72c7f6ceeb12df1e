"""The trials in the engine's slots, and those that have left theirs and still write their last files."""

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from kto_sweep.train.device import is_broken, is_out_of_memory, out_of_memory
from kto_sweep.train.packed.engine import Engine
from kto_sweep.train.trial.request import TrainResult
from kto_sweep.train.trial.training import TrialTraining

WRITE_SECONDS = 0.5
"""How long a step without active trials waits for files: then new trials may have come."""


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended."""

    run_id: str
    result: TrainResult | Exception


@dataclass(frozen=True)
class _Ending:
    """A trial whose last files are being written."""

    training: TrialTraining
    written: Future[Any]
    """Of its TrainResult, if it has one."""
    error: Exception | None = None
    """Why it failed."""


class ActiveTrials:
    """Trials attached to slots of `engine`, in the order in which they were attached."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._active: list[TrialTraining] = []
        self._ending: list[_Ending] = []

    def __iter__(self) -> Iterator[TrialTraining]:
        return iter(list(self._active))

    def __len__(self) -> int:
        return len(self._active)

    @property
    def ending(self) -> int:
        """Trials whose last files are not written yet."""
        return len(self._ending)

    def attach(self, training: TrialTraining, slot: int) -> None:
        """Count a trial as active that the engine has in `slot`."""
        self._active.append(training)
        training.attach(self.engine, slot)

    def detach(self, training: TrialTraining) -> None:
        """Free a trial's slot; the trial can be attached again."""
        slot = training.slot
        assert slot is not None
        training.detach(self.engine)
        self.engine.leave(slot)
        self._active.remove(training)

    def end(self, training: TrialTraining, outcome: Future[TrainResult] | Exception) -> None:
        """Free a trial's slot for good; `outcome`: its result once written, or why it failed."""
        if training.slot is not None:
            self.engine.leave(training.slot)
            self._active.remove(training)
            training.leave()
        if isinstance(outcome, Exception):
            self._ending.append(_Ending(training, training.fail(outcome), outcome))
        else:
            self._ending.append(_Ending(training, outcome))

    @contextmanager
    def isolate(self, training: TrialTraining) -> Iterator[None]:
        """An error in this block ends `training` and no other trial. Raises what broke the device."""
        try:
            yield
        except Exception as error:
            if is_broken(error):
                raise
            self.end(training, out_of_memory(str(error)) if is_out_of_memory(error) else error)

    def written(self, *, wait_for_one: bool) -> list[TrialOutcome]:
        """Outcomes of the trials whose files are written since the last call.

        `wait_for_one`: wait up to WRITE_SECONDS for the first of them.
        """
        if wait_for_one and self._ending:
            wait([ending.written for ending in self._ending], WRITE_SECONDS, return_when=FIRST_COMPLETED)
        outcomes = []
        for ending in [ending for ending in self._ending if ending.written.done()]:
            self._ending.remove(ending)
            problem = ending.written.exception()
            if isinstance(problem, Exception) and ending.error is None:
                self.end(ending.training, problem)  # its weights could not be written
                continue
            ending.training.close()
            outcomes.append(
                TrialOutcome(ending.training.request.run_id, ending.error or ending.written.result())
            )
        return outcomes

    def free_slot(self, waiting: int) -> int:
        """An empty slot, added if there is none. Raises torch.OutOfMemoryError.

        `waiting`: trials that will need a slot next. Each resize copies all adapters, so one resize makes
        room for them too, if memory allows.
        """
        taken = {training.slot for training in self._active}
        if len(taken) == self.engine.slots:
            try:
                self.engine.resize(len(taken) + 1 + waiting)
            except torch.OutOfMemoryError:
                self.engine.resize(len(taken) + 1)
        return next(slot for slot in range(self.engine.slots) if slot not in taken)

    @property
    def has_empty_slots(self) -> bool:
        """Whether the engine holds memory for more trials than are active."""
        return self.engine.slots > len(self._active)

    def remove_empty_slots(self) -> None:
        """Move trials to the first slots and free the memory of the others.

        Grouped kernels also need this: they skip groups with an empty slot between full ones.
        """
        wanted = len(self._active)
        free = iter(set(range(wanted)) - {training.slot for training in self._active})
        for training in self._active:
            if training.slot is not None and training.slot >= wanted:
                state = self.engine.state(training.slot)
                self.engine.leave(training.slot)
                training.slot = next(free)
                self.engine.join(training.slot, training.trial, state)
        self.engine.resize(wanted)

    def close(self) -> None:
        """Close all trials; each continues from its last checkpoint."""
        for training in (*self._active, *(ending.training for ending in self._ending)):
            training.close()
