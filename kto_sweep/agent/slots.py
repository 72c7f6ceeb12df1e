"""Where trials are put: a station is one device with its worker, a slot is room for one trial in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kto_sweep.agent.devices import Device
from kto_sweep.agent.heart import Heart
from kto_sweep.agent.presence import Orphan
from kto_sweep.agent.runs import TrialRun
from kto_sweep.agent.worker_process import WorkerProcess


@dataclass(eq=False)
class Work:
    """A trial in a slot."""

    run_id: str
    config: Mapping[str, Any]
    run: TrialRun | None = None
    """Its W&B run; None until that is open."""
    opening: bool = False
    """Its run is being opened."""
    ordered: bool = False
    """Its worker has it."""
    closing: bool = False
    """It has ended; its run is being closed."""
    close_by: float = float("inf")
    """Monotonic time at which the closing is given up: wandb's own limit does not hold for several runs."""
    orphan: Orphan | None = None
    """What it is if a dead agent has left it."""
    failures: int = 0
    """Times that it failed at the same place through no fault of its own."""
    failed_at: int = -1
    """The last step logged before."""
    suspect: bool = False
    """It may be what ends the workers: see blame.py."""
    not_before: float = 0.0
    """Monotonic time of the next attempt."""

    @property
    def is_unopened(self) -> bool:
        """Its run could not be opened; that is tried again."""
        return self.run is None and not self.opening

    def fail_here(self) -> int:
        """Count one more failure; how many there were at this place."""
        step = self.run.logged_steps if self.run is not None else 0
        self.failures = self.failures + 1 if step <= self.failed_at else 1
        self.failed_at = max(step, self.failed_at)
        self.ordered = False
        return self.failures

    def passed(self, step: int) -> None:
        """A step was logged: what happened at earlier ones is of no matter any more."""
        if step > self.failed_at:
            self.failures, self.suspect = 0, False


@dataclass(eq=False)
class Slot:
    """Room for one trial, with an agent of its own on the server."""

    station: "Station"
    heart: Heart | None = None
    """None until its worker is ready for the first time."""
    work: Work | None = None
    ended: bool = False
    failed_openings: int = 0
    """Times, one after another, that a run could not be opened."""
    not_before: float = 0.0
    """Monotonic time before which it asks for no trial."""


@dataclass(eq=False)
class Station:
    """One device: its worker process and the slots in it."""

    device: Device
    slots: list[Slot] = field(default_factory=list)
    wanted: int = 64
    """Slots that the worker can make use of, as far as is known."""
    worker: WorkerProcess | None = None
    ready: bool = False
    """The present worker takes orders."""
    was_ready: bool = False
    """Some worker of it has been: that another does not start may pass."""
    employ_at: float | None = None
    """Monotonic time at which another worker is started; None: it has one, or is to have none."""
    idle_deaths: int = 0
    """Workers that ended one after another without a trial, since the last that did its work."""
    last_words: str = ""
    """What the present worker said was the end of it."""
    retired: bool = False
    """Not used any more: its device is broken, or workers do not start on it."""
    exhausted: bool = False
    """The sweep had no trial for one of its slots: more of them would get none either."""

    @property
    def ended(self) -> bool:
        """No slot takes trials any more."""
        return all(slot.ended for slot in self.slots)

    @property
    def open(self) -> list[Slot]:
        """The slots that take trials."""
        return [slot for slot in self.slots if not slot.ended]

    @property
    def crowded(self) -> bool:
        """There are more slots than the worker wants."""
        return len(self.open) > self.wanted

    def grow(self) -> list[Slot]:
        """New slots, up to as many as are wanted; none on a broken device or when no trials are left."""
        missing = 0 if self.exhausted or self.retired else self.wanted - len(self.open)
        added = [Slot(self) for _ in range(missing)]
        self.slots += added
        return added

    def reopen(self, slots: int) -> None:
        """Take trials again, so many at once, after there had been none left."""
        self.exhausted = False
        self.slots += [Slot(self) for _ in range(slots)]

    @property
    def aboard(self) -> list[Work]:
        """The trials that the worker has."""
        return [slot.work for slot in self.slots if slot.work and slot.work.ordered]

    def holder(self, run_id: str) -> Slot | None:
        """The slot that has this run."""
        return next((slot for slot in self.slots if slot.work and slot.work.run_id == run_id), None)
