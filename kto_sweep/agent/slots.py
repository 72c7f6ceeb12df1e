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
    worker: WorkerProcess | None = None
    ready: bool = False
    """The present worker takes orders."""
    idle_deaths: int = 0
    """Workers that ended one after another without a trial."""

    @property
    def ended(self) -> bool:
        """No slot takes trials any more."""
        return all(slot.ended for slot in self.slots)

    def holder(self, run_id: str) -> Slot | None:
        """The slot that has this run."""
        return next((slot for slot in self.slots if slot.work and slot.work.run_id == run_id), None)
