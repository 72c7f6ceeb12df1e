"""What a trial's folder says of its W&B run: where it belongs, whether it has ended, who works on it."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.records import read_record_of, write_record

_FILE = "run.json"


@dataclass(frozen=True)
class RunRecord:
    """One run as this box opened it."""

    entity: str
    project: str
    sweep: str
    local: bool
    """On the embedded server of this KTO_SWEEP_HOME."""
    base_url: str
    """The W&B server otherwise."""
    ended: bool = False
    """Its last word was said, if perhaps not heard by the server."""
    sent: bool = False
    """The server is known to have everything."""
    agent: str = ""
    """The agent that has it: see presence.py."""
    device: str = ""
    """What it was trained on last."""
    attempt: int = 1
    """How often this box has opened it."""
    home: str = ""
    """The id of the home that it was opened in: see presence.py."""

    def write(self, folder: Path) -> None:
        """Keep it in the run's folder."""
        write_record(folder / _FILE, self)


def read_record(folder: Path) -> RunRecord | None:
    """The record in a run's folder; None when there is none that can be read."""
    return read_record_of(RunRecord, folder / _FILE)


class Claim:
    """Says that this process works on a run, until it is dropped or the process ends, however that ends.

    A lock on the folder itself, so that nothing is left behind.
    """

    def __init__(self, folder: Path) -> None:
        """Waits while the run is being sent."""
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._folder, fcntl.LOCK_SH)

    def drop(self) -> None:
        """Let others have it; a second time changes nothing."""
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1


@contextmanager
def unclaimed(folder: Path) -> Iterator[bool]:
    """Whether nobody works on the run; nobody can begin to until the end of the block."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        free = False
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        yield free
    finally:
        os.close(descriptor)
