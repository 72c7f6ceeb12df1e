"""The record of a W&B run in its trial's folder."""

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.home import Home
from kto_sweep.json_file import read_record_file, write_record

_FILE = "run.json"


@dataclass(frozen=True)
class RunRecord:
    """One run, as opened by this machine."""

    entity: str
    project: str
    sweep: str
    local: bool
    """On the embedded server of this KTO_SWEEP_HOME."""
    base_url: str
    """URL of the W&B server; empty if local, or for an offline run, which has no server yet."""
    ended: bool = False
    """The run ended, but the server may not have all of its data."""
    sent: bool = False
    """The server has all of its data."""
    agent: str = ""
    """The agent that owns it: see agent/lease.py."""
    device: str = ""
    """The device that last trained it."""
    attempt: int = 1
    """How many times this machine has opened it."""
    home: str = ""
    """The id of the home that opened it: see `home_id`."""

    @property
    def is_offline(self) -> bool:
        """Whether the run has only been written to files."""
        return not self.local and not self.base_url

    def write(self, folder: Path) -> None:
        """Write it to the run's folder."""
        write_record(folder / _FILE, self)


def read_record(folder: Path) -> RunRecord | None:
    """The record in a run's folder; None if it is missing or damaged."""
    return read_record_file(RunRecord, folder / _FILE)


def home_id(home: Home) -> str:
    """This home's unique id, which distinguishes its runs from runs taken over by another machine."""
    path = home.root / "home-id"
    identifier = _read_id(path)
    if not identifier:
        path.unlink(missing_ok=True)  # it is damaged; the id is recovered from the runs' records
        home.root.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"home-id.{os.getpid()}")
        scratch.write_text(_id_of_runs(home) or secrets.token_hex(8))
        with suppress(FileExistsError):
            os.link(scratch, path)
        scratch.unlink()
        identifier = _read_id(path)
    return identifier


def _read_id(path: Path) -> str:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
    return text if len(text) == 16 and text.isalnum() else ""


def _id_of_runs(home: Home) -> str:
    records = (read_record(folder) for folder in home.runs.glob("*"))
    return next((record.home for record in records if record is not None and record.home), "")
