"""What the supervisor and a worker say to each other: one JSON object a line.

Orders go to the worker's standard input, messages come back on a pipe of their own, so that whatever a
library prints cannot be taken for a message. What is about a run names it: a worker may train several.
The end of the orders (the supervisor is gone) tells a worker to stop.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

MESSAGE_FD = "KTO_SWEEP_MESSAGE_FD"
"""Environment variable that tells a worker which file descriptor takes its messages."""
DEVICES = "KTO_SWEEP_DEVICES"
"""Environment variable that tells a worker how many devices it trains each trial on."""


@dataclass(frozen=True)
class Start:
    """Order: train a trial."""

    run_id: str
    config: Mapping[str, Any]
    """The trial's configuration, as the sweep server sent it."""
    out_dir: str
    """Folder for adapters and logs. A trial that has a checkpoint in it goes on from there."""
    logged_steps: int | None = None
    """The last step whose metrics were received, if that is known: each later one comes exactly once. None:
    those after the checkpoint's step come."""


@dataclass(frozen=True)
class Stop:
    """Order: end a trial after the step it is in."""

    run_id: str


@dataclass(frozen=True)
class Ready:
    """Message: libraries are loaded, trials can start."""

    device: str
    """What the worker trains on, for people: `NVIDIA H200` or `CPU, 2 threads`."""


@dataclass(frozen=True)
class Preparing:
    """Message: how far something is that must be done before the first step."""

    run_id: str
    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Planned:
    """Message: how many optimizer steps the trial takes."""

    run_id: str
    total_steps: int
    done_steps: int = 0
    """Steps that an earlier attempt has done and logged: the trial goes on after them."""


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
    """Message: something about the trial that a person should look at."""

    run_id: str
    title: str
    text: str


@dataclass(frozen=True)
class Done:
    """Message: the trial ended, by itself or because it was told to."""

    run_id: str
    summary: Mapping[str, float | int | str]
    steps: int
    stopped: bool


@dataclass(frozen=True)
class Failed:
    """Message: the trial cannot go on."""

    run_id: str
    cause: str
    """A value of `FailureCause`."""
    message: str
    hint: str = ""
    trace: str = field(default="", repr=False)
    """Python's traceback when the failure is a defect, else empty."""


@dataclass(frozen=True)
class MakeRoom:
    """Message: how many trials the worker wants to train at once, from what it has measured."""

    slots: int
    reason: str
    """For people; empty when there is nothing to tell yet."""


@dataclass(frozen=True)
class Broken:
    """Message: this worker cannot go on, for a reason that is none of one trial; it ends."""

    text: str


Order = Start | Stop
TrialMessage = Preparing | Planned | Metrics | Note | Alert | Done | Failed
Message = Ready | MakeRoom | Broken | TrialMessage

_KINDS: dict[str, type] = {kind.__name__.lower(): kind for kind in (*get_args(Order), *get_args(Message))}


def encode(line: Order | Message) -> bytes:
    """One line of JSON, newline included. NaN and infinities travel as Python's own tokens."""
    return json.dumps({"kind": type(line).__name__.lower(), **asdict(line)}).encode() + b"\n"


def decode(line: bytes) -> Any:
    """The order or message that `encode` wrote.

    Raises ValueError when the line is none.
    """
    try:
        fields = json.loads(line)
        return _KINDS[fields.pop("kind")](**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an order or message: {line[:200]!r}") from error
