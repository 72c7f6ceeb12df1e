"""The protocol between supervisor and workers: one JSON object per line.

Orders go to the worker's standard input. Messages come back on a separate pipe, so that library output is not
read as a message. A worker may train several runs, so everything about a run names it. When standard input
ends, the supervisor has exited and the worker stops.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from kto_sweep.json_file import parse_json

MESSAGE_FD = "KTO_SWEEP_MESSAGE_FD"
"""Environment variable with the file descriptor for a worker's messages."""
DEVICES = "KTO_SWEEP_DEVICES"
"""Environment variable with the number of devices per trial."""


@dataclass(frozen=True)
class StartTrial:
    """Order: train a trial."""

    run_id: str
    config: Mapping[str, Any]
    """The trial's configuration, as the sweep server sent it."""
    out_dir: str
    """Folder for adapters and logs. If it has a checkpoint, the trial resumes from it."""
    logged_steps: int | None = None
    """The last step whose metrics were received; the worker sends each later step exactly once. None:
    unknown, so it sends the steps after the checkpoint."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What the agent knows of the trial's Provenance, as JSON."""


@dataclass(frozen=True)
class StopTrial:
    """Order: stop a trial after its current step."""

    run_id: str


@dataclass(frozen=True)
class Ready:
    """Message: the libraries are loaded and trials can start."""

    device: str
    """The worker's device, for people: `NVIDIA H200` or `CPU, 2 threads`."""


@dataclass(frozen=True)
class Preparing:
    """Message: progress of work before the first step."""

    run_id: str
    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Loaded:
    """Message: the trial's model and data are loaded."""

    run_id: str
    provenance: Mapping[str, Any]
    """The trial's whole Provenance, as JSON."""


@dataclass(frozen=True)
class Planned:
    """Message: the trial's number of optimizer steps."""

    run_id: str
    total_steps: int
    done_steps: int = 0
    """Steps finished and logged by an earlier attempt; the trial continues after them."""


@dataclass(frozen=True)
class Metrics:
    """Message: values measured at an optimizer step."""

    run_id: str
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Note:
    """Message: one line for the trial's console log."""

    run_id: str
    text: str


@dataclass(frozen=True)
class Alert:
    """Message: an alert about the trial."""

    run_id: str
    level: str
    """A value of `AlertLevel`."""
    title: str
    text: str
    step: int


@dataclass(frozen=True)
class Done:
    """Message: the trial finished or was stopped."""

    run_id: str
    summary: Mapping[str, float | int | str]
    steps: int
    stopped: bool


@dataclass(frozen=True)
class Failed:
    """Message: the trial failed."""

    run_id: str
    cause: str
    """A value of `FailureCause`."""
    message: str
    hint: str = ""
    trace: str = field(default="", repr=False)
    """Python's traceback if the failure is a bug, else empty."""


@dataclass(frozen=True)
class SetConcurrency:
    """Message: the number of trials to train at once, according to the worker's measurements."""

    slots: int
    reason: str
    """For people; empty if there is none yet."""


@dataclass(frozen=True)
class WorkerBroken:
    """Message: the worker exits because of an error of which it does not know the trial, if one caused it."""

    text: str
    cause: str = ""
    """A value of `FailureCause`; empty: to be found in `text`."""


Order = StartTrial | StopTrial
TrialMessage = Preparing | Loaded | Planned | Metrics | Note | Alert | Done | Failed
Message = Ready | SetConcurrency | WorkerBroken | TrialMessage

_KINDS: dict[str, type] = {kind.__name__.lower(): kind for kind in (*get_args(Order), *get_args(Message))}


def encode(line: Order | Message) -> bytes:
    """One line of JSON with its newline. NaN and infinities are encoded as Python's json does."""
    return json.dumps({"kind": type(line).__name__.lower(), **asdict(line)}).encode() + b"\n"


def decode(line: bytes) -> Any:
    """The order or message in a line that `encode` wrote.

    Raises ValueError for any other line.
    """
    try:
        fields = parse_json(line)
        return _KINDS[fields.pop("kind")](**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an order or message: {line[:200]!r}") from error
