"""Train one trial in several processes, one for each device, with TRL's trainer.

    worker --> launcher --> rank 0 (reports, checkpoints, evaluations), rank 1, ...

The ranks are started for one trial and end with it or with the worker. The first that fails ends them all. As
with torchrun, they connect to a store on this machine, named by the same environment variables.
"""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from torch.distributed import TCPStore

from kto_sweep.errors import FailureCause, TrialFailure
from kto_sweep.home import Home
from kto_sweep.protocol import Failed
from kto_sweep.train.device import LostProcessError
from kto_sweep.train.trial.request import TrainResult, TrialRequest
from kto_sweep.train.trl.rank_process import RankExit, RankTask, run_rank
from kto_sweep.trial import Trial

SPAWN = multiprocessing.get_context("spawn")
"""Not forked: importing bitsandbytes initialises CUDA, and then CUDA does not work in forked processes."""
_POLL_SECONDS = 0.5
"""Interval at which the ranks' messages and a request to stop are read."""
_GRACE_SECONDS = 5.0
"""Time for the other ranks to report after one has failed."""


@dataclass
class _Rank:
    """One rank's process."""

    number: int
    process: BaseProcess
    connection: Connection
    exit: RankExit | None = None
    closed: bool = field(default=False, repr=False)
    """It has closed its end of the connection."""


def check_devices(trial: Trial, devices: int) -> None:
    """Raise TrialFailure when a batch cannot be divided evenly among the devices."""
    batch = trial.batch_size
    if batch % devices:
        below, above = batch - batch % devices, batch + devices - batch % devices
        fits = " or ".join(str(size) for size in (below, above) if size)
        raise TrialFailure(
            FailureCause.BAD_CONFIG,
            f"batch_size {batch} is not a multiple of the {devices} devices per trial",
            hint=f"batch_size: {fits}, or another --gpus-per-trial",
        )


def train_in_ranks(request: TrialRequest, home: Home, devices: int) -> TrainResult:
    """Train a trial on several devices; like trainer.train_with_trl on one.

    Raises TrialFailure when training fails, LostProcessError when another attempt may succeed.
    """
    check_devices(request.trial, devices)
    request.report.note(f"trained on {devices} devices with TRL's trainer, which trains one trial at a time")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    task = RankTask(
        request.trial, request.folder, request.logged, home.root, devices, store.port, request.provenance
    )
    with _started(task) as ranks:
        stop_sent = False
        while any(rank.process.is_alive() or not rank.closed for rank in ranks):
            if not stop_sent and request.should_stop():
                stop_sent = True
                _send_stop(ranks[0])
            _receive(ranks, request, _POLL_SECONDS)
            if any(_has_failed(rank) for rank in ranks):
                raise _cause(ranks, request)
    return _result(ranks[0])


@contextmanager
def _started(task: RankTask) -> Iterator[list[_Rank]]:
    """Start one process for each device; all are killed at the end of the block."""
    ranks: list[_Rank] = []
    try:
        for number in range(task.size):
            ours, theirs = SPAWN.Pipe()
            process = SPAWN.Process(target=run_rank, args=(number, task, theirs), name=f"rank {number}")
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
        return  # it has exited, which `_receive` finds out


def _receive(ranks: Sequence[_Rank], request: TrialRequest, seconds: float) -> None:
    """Pass the ranks' reports on; waits up to `seconds` for one."""
    open_ranks = {rank.connection: rank for rank in ranks if not rank.closed}
    for connection in wait(list(open_ranks), seconds):
        rank = open_ranks[connection]  # type: ignore[index]
        try:
            message = rank.connection.recv()
        except (EOFError, ConnectionResetError):
            rank.closed = True
            rank.process.join(_GRACE_SECONDS)
            continue
        if isinstance(message, RankExit):
            rank.exit = message
        else:
            what, arguments = message
            getattr(request.report, what)(*arguments)


def _has_failed(rank: _Rank) -> bool:
    if rank.exit is not None:
        return isinstance(rank.exit.outcome, Failed)
    return rank.closed


def _cause(ranks: Sequence[_Rank], request: TrialRequest) -> Exception:
    """The error to raise, after every rank has had time to report."""
    end = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < end and not all(rank.closed for rank in ranks):
        _receive(ranks, request, _POLL_SECONDS)
    of = f"of {len(ranks)}"
    for rank in ranks:
        if rank.closed and rank.exit is None:
            status = rank.process.exitcode
            how = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
            return _lost(request, f"process {rank.number + 1} {of} ended with {how}")
    failed = [rank for rank in ranks if rank.exit is not None and isinstance(rank.exit.outcome, Failed)]
    first = min(failed, key=lambda rank: rank.exit.at if rank.exit else 0.0)
    assert first.exit is not None
    assert isinstance(first.exit.outcome, Failed)
    outcome = first.exit.outcome
    if outcome.trace:
        request.report.note(outcome.trace)
    if first.exit.broken and FailureCause(outcome.cause).is_retried:
        return _lost(request, f"process {first.number + 1} {of}: {outcome.message}")
    return TrialFailure(FailureCause(outcome.cause), outcome.message, hint=outcome.hint)


def _lost(request: TrialRequest, text: str) -> LostProcessError:
    request.report.note(text)
    return LostProcessError(text)


def _result(first: _Rank) -> TrainResult:
    assert first.exit is not None
    assert isinstance(first.exit.outcome, TrainResult)
    return first.exit.outcome
