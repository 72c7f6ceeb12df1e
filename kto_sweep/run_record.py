"""What a trial's folder says of its W&B run: where it belongs, whether it has ended, who works on it."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.home import Home
from kto_sweep.json_file import read_record_of, write_record

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
    """The agent that has it: see agent/lease.py."""
    device: str = ""
    """What it was trained on last."""
    attempt: int = 1
    """How often this box has opened it."""
    home: str = ""
    """The id of the home that it was opened in: see `home_id`."""

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
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        yield free
    finally:
        os.close(descriptor)


def home_id(home: Home) -> str:
    """A name that only this home has: what tells its runs from those that another box has taken over."""
    path = home.root / "home-id"
    known = _read_id(path)
    if not known:
        path.unlink(missing_ok=True)  # it is damaged; the runs know it
        home.root.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"home-id.{os.getpid()}")
        scratch.write_text(_id_of_runs(home) or secrets.token_hex(8))
        with suppress(FileExistsError):
            os.link(scratch, path)
        scratch.unlink()
        known = _read_id(path)
    return known


def _read_id(path: Path) -> str:
    try:
        found = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
    return found if len(found) == 16 and found.isalnum() else ""


def _id_of_runs(home: Home) -> str:
    records = (read_record(folder) for folder in home.runs.glob("*"))
    return next((record.home for record in records if record is not None and record.home), "")
