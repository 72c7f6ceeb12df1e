"""One of several processes that train a trial together. The launcher starts it, and it ends with the
launcher.

to the first rank     "stop"
from the first rank   (method, arguments) of the Report
from every rank       RankExit
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

from kto_sweep.alerts import RunAlert
from kto_sweep.home import Home
from kto_sweep.protocol import Failed
from kto_sweep.provenance import Provenance
from kto_sweep.train.trial.request import TrainResult
from kto_sweep.train.worker.channel import failure
from kto_sweep.trial import Trial


@dataclass(frozen=True)
class RankTask:
    """What all ranks of a trial get."""

    trial: Trial
    folder: Path
    logged: int | None
    home: Path
    size: int
    port: int
    """Of the store that they connect to, on this machine."""
    provenance: Provenance
    """See TrialRequest."""


@dataclass(frozen=True)
class RankExit:
    """A rank's last message."""

    outcome: TrainResult | Failed
    broken: bool = False
    """Its device failed in this process; another process may succeed."""
    at: float = 0.0
    """Seconds of the machine's monotonic clock: the first failure is the cause of the others."""


class PipeReport:
    """A Report that sends everything to the launcher."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def preparing(self, what: str, done: int, total: int) -> None:
        """Send it."""
        self._connection.send(("preparing", (what, done, total)))

    def loaded(self, provenance: Provenance) -> None:
        """Send it."""
        self._connection.send(("loaded", (provenance,)))

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        """Send it."""
        self._connection.send(("plan", (total_steps, done_steps)))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Send it."""
        self._connection.send(("metrics", (step, dict(values))))

    def note(self, text: str) -> None:
        """Send it."""
        self._connection.send(("note", (text,)))

    def alert(self, alert: RunAlert) -> None:
        """Send it."""
        self._connection.send(("alert", (alert,)))


def run_rank(rank: int, task: RankTask, connection: Connection) -> None:
    """Train the trial as one of its ranks, and exit."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        ended = RankExit(_train(rank, task, connection))
    except BaseException as error:
        traceback.print_exc()  # into the worker's log
        ended = _failed(error)
    connection.send(ended)
    sys.stdout.flush()
    sys.stderr.flush()
    # A normal exit would wait for the other ranks, which may have exited.
    os._exit(0 if isinstance(ended.outcome, TrainResult) else 1)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _train(rank: int, task: RankTask, connection: Connection) -> TrainResult:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(task.size),
        "LOCAL_WORLD_SIZE": str(task.size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(task.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the launcher has the store
    }
    import torch

    from kto_sweep.train.base_model import TINY
    from kto_sweep.train.context import WorkerContext
    from kto_sweep.train.load_progress import no_progress
    from kto_sweep.train.tiny import tiny_model
    from kto_sweep.train.trial.request import TrialRequest
    from kto_sweep.train.trl.ranks import Ranks
    from kto_sweep.train.trl.trainer import train_with_trl

    if torch.cuda.is_available():
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(max(1, torch.get_num_threads() // task.size))
    home = Home(task.home)
    report = PipeReport(connection)
    if task.trial.base_model == TINY:
        # Before the ranks join: after that transformers lets only the first one write.
        tiny_model(home.models, progress=report.preparing if rank == 0 else no_progress)
    ranks = Ranks.join(device)
    stopped = False

    def should_stop() -> bool:
        nonlocal stopped
        stopped = stopped or (ranks.is_first and connection.poll() and connection.recv() == "stop")
        return stopped

    request = TrialRequest("", task.trial, task.folder, report, should_stop, task.logged, task.provenance)
    return train_with_trl(WorkerContext(home, device), request)


def _failed(error: BaseException) -> RankExit:
    from kto_sweep.train.device import is_broken, is_out_of_memory, out_of_memory

    cause = out_of_memory(str(error)) if is_out_of_memory(error) else error
    return RankExit(failure("", cause), is_broken(error), time.monotonic())
