"""What can happen to a supervisor: everything arrives in one queue.

heartbeat of a slot --> Told, Lost       worker --> Said, Died       W&B run --> StopAsked
signals --> Signalled
"""

import queue
from collections.abc import Callable
from dataclasses import dataclass

from kto_sweep.agent.runs import TrialRun
from kto_sweep.agent.slots import Slot, Station, Work
from kto_sweep.agent.worker_process import WorkerProcess
from kto_sweep.errors import ServerError
from kto_sweep.protocol import Message
from kto_sweep.wandb_client.private_api import Command


@dataclass(frozen=True)
class Told:
    """The server's commands for a slot."""

    slot: Slot
    commands: list[Command]


@dataclass(frozen=True)
class Lost:
    """The server does not know the sweep any more."""

    error: ServerError


@dataclass(frozen=True)
class Said:
    """A message of a worker."""

    station: Station
    message: Message


@dataclass(frozen=True)
class Died:
    """A worker ended, with this exit status."""

    station: Station
    worker: WorkerProcess
    status: int


@dataclass(frozen=True)
class Opened:
    """A trial's run is open, or could not be opened."""

    slot: Slot
    work: Work
    outcome: TrialRun | Exception


@dataclass(frozen=True)
class Closed:
    """A trial's run was closed."""

    slot: Slot
    work: Work
    sent: bool
    """The server has everything."""
    tell: Callable[[], None]
    """Says how the trial ended."""


@dataclass(frozen=True)
class ServiceGone:
    """The process that wandb does its work in has ended."""


@dataclass(frozen=True)
class StopAsked:
    """The server wants a run to stop (the way that bypasses the agent)."""

    run_id: str


@dataclass(frozen=True)
class Signalled:
    """This process got a signal."""

    number: int


Event = Told | Lost | Said | Died | Opened | Closed | ServiceGone | StopAsked | Signalled
Events = queue.SimpleQueue[Event]
