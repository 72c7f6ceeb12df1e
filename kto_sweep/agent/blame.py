"""Whose fault a failure is, and what to do about it. Pure.

A trial's own fault ends it. What is not is tried again, RETRIES times at the same place: a trial that gets
further than it did before starts counting anew, so a night with many accidents is not the end of it.

Several trials die with one worker. After the second time they are suspects and go on first, one at a time,
each until it has got past the place where it died; who is alone when the next worker dies is the culprit.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kto_sweep.errors import FailureCause, is_gpu_error

RETRIES = 2
SUSPICIOUS = 2
"""Deaths at the same place after which a trial is watched on its own."""
NETWORK_SECONDS = (30.0, 120.0)
"""Before the first and second retry of a trial that found no network."""

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
    """Whether a trial with so many failures at the same place is tried again after one more of this cause."""
    return cause in NOT_ITS_OWN and failures <= RETRIES


def pause(cause: str, failures: int) -> float:
    """Seconds to wait before the next attempt."""
    if cause == FailureCause.NETWORK:
        return NETWORK_SECONDS[min(failures, len(NETWORK_SECONDS)) - 1]
    return 0.0


def cause_of_death(last_words: str) -> FailureCause:
    """What ended a worker, by what it said in the end."""
    if is_gpu_error(last_words) or is_hardware(last_words):
        return FailureCause.SICK_GPU
    return FailureCause.WORKER_CRASH


def is_hardware(last_words: str) -> bool:
    """Whether the words are those of a device that is broken, and not of a program's mistake on it."""
    return any(word in last_words.lower() for word in _HARDWARE)


@dataclass(frozen=True)
class Death:
    """A worker's end that nobody had asked for."""

    device: str
    aboard: frozenset[str]
    """The trials that it had."""
    hardware: bool = False
    """It spoke of a broken device."""


def is_sick(device: str, deaths: Sequence[Death], culprits: Collection[str], *, others: bool) -> bool:
    """Whether a GPU is to be used no more.

    Deaths of trials that were found to be culprits do not count. With `others` to go on with, two deaths are
    enough: the trials move, and if they die there too, it was not the device. The last one is only given up
    when it is broken by its own words, or when different trials die on it alone, again and again.
    """
    here = [death for death in deaths if death.device == device]
    if sum(death.hardware for death in here) >= 2:
        return True
    if others:
        return sum(not death.aboard & set(culprits) for death in here) >= 2
    alone = {run_id for death in here if len(death.aboard) == 1 for run_id in death.aboard}
    return len(here) >= 5 and len(alone) >= 2
