"""Where trials are put: a station is one device with its worker, a slot is room for one trial in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kto_sweep.agent.devices import Device
from kto_sweep.agent.heart import Heart
from kto_sweep.agent.runs import TrialRun
from kto_sweep.agent.worker_process import WorkerProcess


@dataclass(frozen=True)
class Work:
    """A trial in a slot, with its open W&B run."""

    run_id: str
    config: Mapping[str, Any]
    run: TrialRun
    attempt: int = 1
    """Counts the workers that have had it."""


@dataclass(eq=False)
class Slot:
    """Room for one trial, with an agent of its own on the server."""

    station: "Station"
    heart: Heart | None = None
    """None until its worker is ready for the first time."""
    work: Work | None = None
    ended: bool = False


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
    idle_deaths: int = 0
    """Workers that ended one after another without a trial."""
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

    def grow(self, wanted: int) -> list[Slot]:
        """New slots, so that there are `wanted`; none for a sweep that has no trials left."""
        missing = 0 if self.exhausted else wanted - len(self.open)
        added = [Slot(self) for _ in range(missing)]
        self.slots += added
        return added

    def holder(self, run_id: str) -> Slot | None:
        """The slot that has this run."""
        return next((slot for slot in self.slots if slot.work and slot.work.run_id == run_id), None)
