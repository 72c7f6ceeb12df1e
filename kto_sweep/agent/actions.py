"""The actions that the scheduler requests; executor.py performs them.

worker    StartWorker, KillWorker, EndWorker, Dispatch, RequestStop
W&B run   OpenRun, CloseRun, Record, Log, CompareInputs
server    Heartbeat, CloseSlot, EndService
people    Say, ShowStarted, ShowEnded
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kto_sweep.agent.devices import Device
from kto_sweep.agent.state import Assignment, TrialEnd
from kto_sweep.protocol import Done, TrialMessage
from kto_sweep.trial import Trial


@dataclass(frozen=True)
class StartWorker:
    """Start a worker process; events identify it by `worker`."""

    device: Device
    worker: int


@dataclass(frozen=True)
class KillWorker:
    """Kill a worker process as if it had crashed."""

    device: str


@dataclass(frozen=True)
class EndWorker:
    """Tell a worker process to exit; kill it if it does not, or if `at_once`."""

    device: str
    at_once: bool


@dataclass(frozen=True)
class OpenRun:
    """Open a trial's W&B run."""

    slot: int
    device: str
    trial: Assignment


@dataclass(frozen=True)
class CloseRun:
    """Close a trial's W&B run."""

    slot: int
    run_id: str
    ending: TrialEnd


@dataclass(frozen=True)
class Dispatch:
    """Give a trial to its worker, if the disk has space for it."""

    slot: int
    device: str
    trial: Assignment


@dataclass(frozen=True)
class RequestStop:
    """Tell a worker to stop a trial after its current step."""

    device: str
    run_id: str


@dataclass(frozen=True)
class Heartbeat:
    """Continue a slot's heartbeats to the server."""

    slot: int
    device: str
    running: tuple[str, ...]
    """Runs to report as alive; without any, the slot asks for a trial."""
    ask_after: float
    """It does not ask for a trial before this time."""
    soon: bool = False
    """Send the next heartbeat without waiting for the interval."""


@dataclass(frozen=True)
class CloseSlot:
    """End a slot's heartbeats."""

    slot: int


@dataclass(frozen=True)
class Record:
    """Log a worker's message to the trial's run and display it."""

    run_id: str
    message: TrialMessage


@dataclass(frozen=True)
class Log:
    """Write to the trial's console log."""

    run_id: str
    text: str


@dataclass(frozen=True)
class CompareInputs:
    """Compare the rows and weights that a trial was trained on with those of earlier trials."""

    trial: Trial | None
    message: Done


@dataclass(frozen=True)
class EndService:
    """Kill wandb's service process, which only knows the server's old address."""


@dataclass(frozen=True)
class Say:
    """Print one line."""

    text: str


@dataclass(frozen=True)
class ShowStarted:
    """Show that a trial started."""

    run_id: str
    name: str
    config: Mapping[str, Any]
    device: str


@dataclass(frozen=True)
class ShowEnded:
    """Show how a trial ended."""

    run_id: str
    ending: TrialEnd


Action = (
    StartWorker
    | KillWorker
    | EndWorker
    | OpenRun
    | CloseRun
    | Dispatch
    | RequestStop
    | Heartbeat
    | CloseSlot
    | Record
    | Log
    | CompareInputs
    | EndService
    | Say
    | ShowStarted
    | ShowEnded
)
