"""Whose fault a failure is, and what follows from it. Pure.

A trial's own fault ends it. Anything else is retried, RETRIES times at the same step: a trial that gets
further than before starts again at zero, so a night with many accidents does not end it.

Several trials die with one worker. From the second time on they are isolated: they run first, one at a time,
each until it gets past the step where it died; the trial that is alone when the next worker dies is the
culprit.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kto_sweep.backoff import Backoff
from kto_sweep.errors import FailureCause, is_gpu_error

RETRIES = 2
ISOLATED_AFTER = 2
"""Worker exits at the same step after which a trial runs alone."""
NO_NETWORK = Backoff(first=30.0, factor=4, most=120.0)
"""Before a trial that found no network is tried again."""

NOT_ITS_OWN = frozenset(
    {FailureCause.WORKER_CRASH, FailureCause.SICK_GPU, FailureCause.DISK_FULL, FailureCause.NETWORK}
)
_HARDWARE = (
    "uncorrectable",
    "ecc error",
    "gpu is lost",
    "fallen off the bus",
    "no cuda-capable device",
    "device unavailable",
    "devices unavailable",
    "hardware",
)


def is_retried(cause: str, failures: int) -> bool:
    """Whether a trial that now has so many failures at the same step is tried again."""
    return cause in NOT_ITS_OWN and failures <= RETRIES


def retry_delay(cause: str, failures: int) -> float:
    """Seconds to wait before the next attempt."""
    return NO_NETWORK.delay(failures) if cause == FailureCause.NETWORK else 0.0


def exit_cause(output: str) -> FailureCause:
    """What ended a worker, by the last lines that it printed."""
    if is_gpu_error(output) or is_hardware(output):
        return FailureCause.SICK_GPU
    return FailureCause.WORKER_CRASH


def is_hardware(output: str) -> bool:
    """Whether a worker's last lines name a broken device, and not a program's mistake on it."""
    return any(word in output.lower() for word in _HARDWARE)


@dataclass(frozen=True)
class WorkerExit:
    """A worker's end that was not asked for."""

    device: str
    running: frozenset[str]
    """The trials that may be to blame."""
    hardware: bool = False
    """It named a broken device."""


def is_sick(device: str, exits: Sequence[WorkerExit], culprits: Collection[str], *, others: bool) -> bool:
    """Whether a GPU is to be quarantined.

    Exits under trials that were found to be culprits do not count. With `others` to continue on, two exits
    are enough: the trials move, and if workers die under them there too, it was not the device. The last
    device is only given up when it is broken by its own words, or when different trials die on it alone,
    again and again.
    """
    here = [worker_exit for worker_exit in exits if worker_exit.device == device]
    if sum(worker_exit.hardware for worker_exit in here) >= 2:
        return True
    if others:
        return sum(not worker_exit.running & set(culprits) for worker_exit in here) >= 2
    alone = {
        run_id for worker_exit in here if len(worker_exit.running) == 1 for run_id in worker_exit.running
    }
    return len(here) >= 5 and len(alone) >= 2
