"""Decides who caused a failure and whether to retry. Pure.

A failure that the trial caused ends the trial. Any other failure is retried, up to RETRIES times at the same
step: progress resets the count, so a night of many unrelated failures does not end a trial.

When a worker dies, so do all its trials. From the second time on they are isolated: they run first, one at a
time, each until it gets past the step where it died. A trial that runs alone when the next worker dies is the
culprit.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kto_sweep.backoff import Backoff
from kto_sweep.errors import FailureCause, is_gpu_error

RETRIES = 2
ISOLATED_AFTER = 2
"""A trial runs alone after this many worker exits at the same step."""
NO_NETWORK = Backoff(first=30.0, factor=4, most=120.0)
"""Delays before retries of a trial that failed because of the network."""

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
    """Whether a trial with this many failures at the same step is retried."""
    return cause in NOT_ITS_OWN and failures <= RETRIES


def retry_delay(cause: str, failures: int) -> float:
    """Seconds to wait before the next attempt."""
    return NO_NETWORK.delay(failures) if cause == FailureCause.NETWORK else 0.0


def exit_cause(output: str) -> FailureCause:
    """Why a worker exited, from the last lines that it printed."""
    if is_gpu_error(output) or is_hardware(output):
        return FailureCause.SICK_GPU
    return FailureCause.WORKER_CRASH


def is_hardware(output: str) -> bool:
    """Whether a worker's last lines report a broken device rather than a program error."""
    return any(word in output.lower() for word in _HARDWARE)


@dataclass(frozen=True)
class WorkerExit:
    """An unexpected exit of a worker."""

    device: str
    running: frozenset[str]
    """The trials that may be to blame."""
    hardware: bool = False
    """The worker reported a broken device."""


def is_sick(device: str, exits: Sequence[WorkerExit], culprits: Collection[str], *, others: bool) -> bool:
    """Whether a GPU should be quarantined.

    Exits caused by known culprits do not count. With `others` to continue on, two exits are enough: the
    trials move, and if they kill workers there too, the device was not to blame. The last device is given up
    only when it reports a hardware fault, or when different trials running alone keep dying on it.
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
