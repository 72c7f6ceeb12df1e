"""The events of an agent: the executor reports them, the scheduler reacts.

clock     Tick
server    Commands, StopRequested, SweepGone, ServerMoved, ServiceGone
worker    WorkerMessage, WorkerExited, WorkerNotStarted
W&B run   RunOpened, RunNotOpened, RunClosed, DiskFull
process   SignalReceived, Crashed
"""

from dataclasses import dataclass
from enum import StrEnum

from kto_sweep.agent.state import Assignment
from kto_sweep.errors import KtoSweepError
from kto_sweep.protocol import Message


@dataclass(frozen=True)
class Tick:
    """About a second has passed."""

    time_left: float = float("inf")
    """Seconds in which trials may run."""
    server_silence: float = 0.0
    """Seconds since the server's last answer."""
    server_trouble: str = ""
    """What is wrong with the server while it is silent, as the start of a sentence."""
    held_workers: frozenset[str] = frozenset()
    """Devices whose worker is suspended by SIGSTOP."""


@dataclass(frozen=True)
class Commands:
    """The server's answer to a slot's heartbeat."""

    slot: int
    run: Assignment | None = None
    """A trial to train."""
    stop: tuple[str, ...] = ()
    """Runs to stop."""
    exit: bool = False
    """There is no trial for this slot."""


@dataclass(frozen=True)
class SweepGone:
    """The sweep no longer exists on the server, or the server has never accepted an agent for it."""

    error: KtoSweepError


@dataclass(frozen=True)
class ServerMoved:
    """The embedded server listens at another address."""

    url: str


@dataclass(frozen=True)
class ServiceGone:
    """wandb's service process exited."""


@dataclass(frozen=True)
class StopRequested:
    """The server asks a run to stop, over the run's own connection."""

    run_id: str


@dataclass(frozen=True)
class WorkerMessage:
    """A worker sent a message."""

    device: str
    worker: int
    message: Message


@dataclass(frozen=True)
class WorkerExited:
    """A worker process exited."""

    device: str
    worker: int
    status: int
    """Its exit status; negative: the signal."""
    output: str = ""
    """The last lines that it printed."""


@dataclass(frozen=True)
class WorkerNotStarted:
    """A worker process could not be started."""

    device: str
    worker: int
    reason: str


@dataclass(frozen=True)
class RunOpened:
    """A trial's W&B run is open."""

    slot: int
    run_id: str
    name: str
    logged_step: int
    """The last step that the run already has."""


class OpeningFailure(StrEnum):
    """Why a run was not opened."""

    TAKEN = "taken"
    """Another agent has the trial, or the server ended it."""
    BUSY = "busy"
    """A dead agent's worker is still writing its files; this is temporary."""
    GIVEN_BACK = "given back"
    """The run was open, something else failed, and the trial was returned to the server."""
    ERROR = "error"


@dataclass(frozen=True)
class RunNotOpened:
    """A trial's W&B run could not be opened."""

    slot: int
    run_id: str
    failure: OpeningFailure
    reason: str


@dataclass(frozen=True)
class RunClosed:
    """A trial's W&B run is closed."""

    slot: int
    run_id: str
    sent: bool
    """The server has all of its data."""


@dataclass(frozen=True)
class DiskFull:
    """There is not enough disk space to open a trial's run or to dispatch the trial."""

    slot: int
    run_id: str
    reason: str


@dataclass(frozen=True)
class SignalReceived:
    """This process received SIGINT or SIGTERM."""

    number: int


@dataclass(frozen=True)
class Crashed:
    """The agent itself raised an error."""

    error: Exception


Event = (
    Tick
    | Commands
    | SweepGone
    | ServerMoved
    | ServiceGone
    | StopRequested
    | WorkerMessage
    | WorkerExited
    | WorkerNotStarted
    | RunOpened
    | RunNotOpened
    | RunClosed
    | DiskFull
    | SignalReceived
    | Crashed
)
