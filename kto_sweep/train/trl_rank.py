"""One of several processes that train a trial together; started by trl_crew, ends with the process that did.

orders   "stop", to the first rank
words    (what, arguments) of the Report, from the first rank; Ended, from every rank
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path

from kto_sweep.home import Home
from kto_sweep.protocol import Failed
from kto_sweep.train.mailbox import failure
from kto_sweep.train.result import TrainResult
from kto_sweep.trial import Trial


@dataclass(frozen=True)
class Task:
    """What all ranks of a trial are told."""

    trial: Trial
    folder: Path
    logged: int | None
    home: Path
    size: int
    port: int
    """Of the store that they meet at, on this machine."""


@dataclass(frozen=True)
class Ended:
    """A rank's last word."""

    outcome: TrainResult | Failed
    broken: bool = False
    """Its device is of no use to it any more: another process may fare better."""
    at: float = 0.0
    """Seconds of the machine's monotonic clock: what failed first is the cause of the rest."""


class Words:
    """A Report that goes to the crew."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def preparing(self, what: str, done: int, total: int) -> None:
        """Pass it on."""
        self._connection.send(("preparing", (what, done, total)))

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        """Pass it on."""
        self._connection.send(("plan", (total_steps, done_steps)))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Pass it on."""
        self._connection.send(("metrics", (step, dict(values))))

    def note(self, text: str) -> None:
        """Pass it on."""
        self._connection.send(("note", (text,)))

    def alert(self, title: str, text: str) -> None:
        """Pass it on."""
        self._connection.send(("alert", (title, text)))


def run_rank(rank: int, task: Task, connection: Connection) -> None:
    """Train the trial as one of its ranks, and end this process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        ended = Ended(_train(rank, task, connection))
    except BaseException as error:
        traceback.print_exc()  # into the worker's log
        ended = _failed(error)
    connection.send(ended)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by way of the interpreter's end, where a rank would wait for others that may be gone.
    os._exit(0 if isinstance(ended.outcome, TrainResult) else 1)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _train(rank: int, task: Task, connection: Connection) -> TrainResult:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(task.size),
        "LOCAL_WORLD_SIZE": str(task.size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(task.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is the crew's
    }
    import torch

    from kto_sweep.train.models import TINY
    from kto_sweep.train.request import Request
    from kto_sweep.train.session import Session
    from kto_sweep.train.tiny import tiny_model
    from kto_sweep.train.trl_ranks import Ranks

    if torch.cuda.is_available():
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(max(1, torch.get_num_threads() // task.size))
    home = Home(task.home)
    if task.trial.base_model == TINY:
        tiny_model(home.models)  # before the ranks have met: then transformers lets the first one alone write
    ranks = Ranks.join(device)
    stopped = False

    def should_stop() -> bool:
        nonlocal stopped
        stopped = stopped or (ranks.leads and connection.poll() and connection.recv() == "stop")
        return stopped

    request = Request("", task.trial, task.folder, Words(connection), should_stop, task.logged)
    return Session(home, device).train_with_trl(request)


def _failed(error: BaseException) -> Ended:
    from kto_sweep.train.device import is_broken, is_out_of_memory, out_of_memory

    cause = out_of_memory(str(error)) if is_out_of_memory(error) else error
    return Ended(failure("", cause), is_broken(error), time.monotonic())
