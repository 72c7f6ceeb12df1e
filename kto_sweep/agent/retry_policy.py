"""Decides who caused a failure and whether to retry. Pure.

A failure that would happen again ends the trial. Any other failure is retried, up to RETRIES times at the
same step: progress resets the count, so a night of many unrelated failures does not end a trial.

When a worker dies, so do all its trials. From the second time on they are isolated: they run first, one at a
time, each until it gets past the step where it died. A trial that runs alone when the next worker dies is the
culprit. An error of a program would end the next worker too: the trials are isolated at once, and one that
ends a worker alone is tried at most once more.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kto_sweep.backoff import Backoff
from kto_sweep.errors import FailureCause, is_device_assert, is_gpu_error

RETRIES = 2
ISOLATED_AFTER = 2
"""A trial runs alone after this many worker exits at the same step."""
NO_NETWORK = Backoff(first=30.0, factor=4, most=120.0)
"""Delays before retries of a trial that failed because of the network."""

_RETRIED = frozenset(cause for cause in FailureCause if cause.is_retried)
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
    return cause in _RETRIED and failures <= RETRIES


def is_retried_after_exit(cause: FailureCause, failures: int) -> bool:
    """The same for a trial that was alone in this many workers when they exited."""
    # Once in any case: the first time, another trial may have left the worker in a bad state.
    return is_retried(cause, failures) or failures == 1


def are_isolated(cause: FailureCause, failures: int) -> bool:
    """Whether trials run one at a time after so many exits of their workers at the same step."""
    return failures >= ISOLATED_AFTER or not cause.is_retried


def retry_delay(cause: str, failures: int) -> float:
    """Seconds to wait before the next attempt."""
    return NO_NETWORK.delay(failures) if cause == FailureCause.NETWORK else 0.0


def exit_cause(output: str) -> FailureCause:
    """Why a worker exited, from its last message or the last lines that it printed."""
    if is_device_assert(output):
        return FailureCause.BAD_CONFIG
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
