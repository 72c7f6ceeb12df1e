"""Train one trial in several processes, one for each device, with TRL's trainer.

    worker --> crew --> rank 0 (reports, checkpoints, evaluations), rank 1, ...

The ranks are started for one trial and end with it; none outlives the worker. The first that fails ends them
all. They meet as torchrun's would: at a store on this machine, described by the same environment variables.
"""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from kto_sweep.errors import FailureCause, TrialFailure
from kto_sweep.home import Home
from kto_sweep.protocol import Failed
from kto_sweep.train.device import LostProcessError
from kto_sweep.train.request import Request
from kto_sweep.train.result import TrainResult
from kto_sweep.train.trl_rank import Ended, Task, run_rank
from kto_sweep.trial import Trial

_LOOK_SECONDS = 0.5
"""Between two looks whether the trial is to stop."""
_GRACE_SECONDS = 5.0
"""For the other ranks to say what they know after one has failed."""


@dataclass
class _Rank:
    """One process, and what is known of it."""

    number: int
    process: BaseProcess
    connection: Connection
    ended: Ended | None = None
    silent: bool = field(default=False, repr=False)
    """It will say no more."""


def check_devices(trial: Trial, devices: int) -> None:
    """Raise TrialFailure when a batch cannot be shared out evenly, before any time is spent."""
    batch = trial.batch_size
    if batch % devices:
        below, above = batch - batch % devices, batch + devices - batch % devices
        fits = " or ".join(str(size) for size in (below, above) if size)
        raise TrialFailure(
            FailureCause.BAD_CONFIG,
            f"batch_size {batch} does not divide by the {devices} devices of each trial",
            hint=f"batch_size: {fits}, or another --gpus-per-trial",
        )


def train_in_ranks(request: Request, home: Home, devices: int) -> TrainResult:
    """Train a trial on several devices; as Session.train_with_trl does on one.

    Raises TrialFailure when the trial cannot go on, LostProcessError when it may in another attempt.
    """
    check_devices(request.trial, devices)
    request.report.note(
        f"trained on {devices} devices with TRL's trainer: several trials at once are for one device"
    )
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    task = Task(request.trial, request.folder, request.logged, home.root, devices, store.port)
    with _started(task) as ranks:
        told = False
        while any(rank.process.is_alive() or not rank.silent for rank in ranks):
            if not told and request.should_stop():
                told = True
                _send_stop(ranks[0])
            _hear(ranks, request, _LOOK_SECONDS)
            if any(_has_failed(rank) for rank in ranks):
                raise _cause(ranks, request)
    return _result(ranks[0])


@contextmanager
def _started(task: Task) -> Iterator[list[_Rank]]:
    """One process for each device; in the end all are gone."""
    # Not forked from one that has imported all that a rank needs: what bitsandbytes asks of CUDA when it is
    # imported leaves CUDA of no use to forked processes.
    context = multiprocessing.get_context("spawn")
    ranks: list[_Rank] = []
    try:
        for number in range(task.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=run_rank, args=(number, task, theirs), name=f"rank {number}")
            process.start()
            theirs.close()
            ranks.append(_Rank(number, process, ours))
        yield ranks
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.process.join()
            rank.connection.close()


def _send_stop(first: _Rank) -> None:
    try:
        first.connection.send("stop")
    except BrokenPipeError:
        return  # it is gone, as will be seen


def _hear(ranks: Sequence[_Rank], request: Request, seconds: float) -> None:
    """Pass on what the ranks say in so many seconds at most."""
    talking = {rank.connection: rank for rank in ranks if not rank.silent}
    for connection in wait(list(talking), seconds):
        rank = talking[connection]  # type: ignore[index]
        try:
            said = rank.connection.recv()
        except (EOFError, ConnectionResetError):
            rank.silent = True
            rank.process.join(_GRACE_SECONDS)
            continue
        if isinstance(said, Ended):
            rank.ended = said
        else:
            what, arguments = said
            getattr(request.report, what)(*arguments)


def _has_failed(rank: _Rank) -> bool:
    if rank.ended is not None:
        return isinstance(rank.ended.outcome, Failed)
    return rank.silent


def _cause(ranks: Sequence[_Rank], request: Request) -> Exception:
    """What to raise, once every rank has had the time to say what it knows."""
    end = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < end and not all(rank.silent for rank in ranks):
        _hear(ranks, request, _LOOK_SECONDS)
    of = f"of {len(ranks)}"
    for rank in ranks:
        if rank.silent and rank.ended is None:
            status = rank.process.exitcode
            how = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
            return _lost(request, f"process {rank.number + 1} {of} ended with {how}")
    failed = [rank for rank in ranks if rank.ended is not None and isinstance(rank.ended.outcome, Failed)]
    first = min(failed, key=lambda rank: rank.ended.at if rank.ended else 0.0)
    assert first.ended is not None
    assert isinstance(first.ended.outcome, Failed)
    outcome = first.ended.outcome
    if outcome.trace:
        request.report.note(outcome.trace)
    if first.ended.broken:
        return _lost(request, f"process {first.number + 1} {of}: {outcome.message}")
    return TrialFailure(FailureCause(outcome.cause), outcome.message, hint=outcome.hint)


def _lost(request: Request, text: str) -> LostProcessError:
    request.report.note(text)
    return LostProcessError(text)


def _result(first: _Rank) -> TrainResult:
    assert first.ended is not None
    assert isinstance(first.ended.outcome, TrainResult)
    return first.ended.outcome
