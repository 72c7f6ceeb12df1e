"""Tracks which agents of a home are alive, and the trials that dead agents left behind.

<home>/agents/<token>          locked by its agent; the lock disappears with the process, however it ends
<home>/runs/<run>/run.json     names the agent that owns the run (see run_record.py)
"""

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kto_sweep.errors import KtoSweepError, UsageError
from kto_sweep.home import Home
from kto_sweep.json_file import parse_json, write_atomic
from kto_sweep.locks import holder, try_exclusive, try_lock
from kto_sweep.run_record import RunRecord, read_record
from kto_sweep.sweep.ref import SweepRef

WORKER_SECONDS = 15.0
"""How long to wait for a dead agent's worker to save its trials before reporting it as busy."""
OPEN_STATES = frozenset({"running", "crashed", "preempting"})
"""States in which the server hands out a run to no agent, and the box that started it may continue it."""
DEAD = "unknown"
"""The token of an unknown agent that is dead."""


class AgentLease:
    """Shows other agents of the same home that this agent is alive; its token is never reused."""

    def __init__(self, home: Home) -> None:
        """Acquires the lease. Raises UsageError if the file system does not support locks."""
        self.token = secrets.token_hex(6)
        self._path = _folder(home) / self.token
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = ExitStack()
        try:
            with _explained(home):
                self._lock.enter_context(try_lock(self._path, seconds=-1))
        except UsageError:
            self.end()
            raise

    def end(self) -> None:
        """Release the lease."""
        self._path.unlink(missing_ok=True)
        self._lock.close()


def is_alive(home: Home, token: str) -> bool:
    """Whether the agent with this token is running. Raises UsageError without support for locks."""
    with _explained(home):
        return holder(_folder(home) / token) is not None


def remove_dead_leases(home: Home) -> None:
    """Remove the leases of dead agents."""
    for path in _folder(home).glob("*"):
        if not is_alive(home, path.name):
            with try_lock(path) as is_dead:  # one that has just been made may not be locked yet
                if is_dead:
                    path.unlink(missing_ok=True)


@contextmanager
def _explained(home: Home) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # some network file systems have no locks, or no server for them
        raise UsageError(
            f"files in {_folder(home)} cannot be locked: {error.strerror}",
            hint="set KTO_SWEEP_HOME to a folder on a disk of this box",
        ) from error


@dataclass(frozen=True)
class OrphanedTrial:
    """A trial whose agent died before closing it."""

    run_id: str
    config: Mapping[str, Any]
    folder: Path
    record: RunRecord


def find_orphaned_trials(home: Home) -> list[OrphanedTrial]:
    """The trials that dead agents of this home left behind, of all sweeps."""
    orphans = []
    for folder in sorted(home.runs.glob("*")):
        record = read_record(folder)
        if record is None or record.sent or not record.agent or is_alive(home, record.agent):
            continue
        config = _read_config(folder)
        if config is not None:  # without it, the run can be synced but not trained
            orphans.append(OrphanedTrial(folder.name, config, folder, record))
    return orphans


def _read_config(folder: Path) -> Mapping[str, Any] | None:
    """A trial's configuration from its folder; None if it cannot be read."""
    try:
        config = parse_json((folder / "trial.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def restore_files(home: Home, run_id: str, config: Mapping[str, Any], record: RunRecord) -> bool:
    """Restore damaged files of a trial of this home, unless it is in use; returns whether that was done."""
    folder = home.runs / run_id
    if not folder.is_dir():
        return False
    record_here = read_record(folder)
    if record_here is not None and _read_config(folder) is not None:
        return False
    with try_exclusive(folder) as free:
        if free:
            write_atomic(folder / "trial.json", json.dumps(config, indent=2) + "\n")
            (record_here or record).write(folder)
    return free


def of_sweep(orphan: OrphanedTrial, ref: SweepRef) -> bool:
    """Whether the orphan belongs to this sweep."""
    record = orphan.record
    return (record.entity, record.project, record.sweep) == (ref.entity, ref.project, ref.id)


class BusyError(KtoSweepError):
    """A dead agent's worker still has the trial; it saves the trial at its next step."""


def take_over(orphan: OrphanedTrial, token: str) -> bool:
    """Make the agent `token` the owner of the trial; False if another agent has it by now.

    Waits for a worker that still has the trial and saves it before exiting. Raises BusyError when that takes
    long, for example because the worker is loading a model.
    """
    deadline = time.monotonic() + WORKER_SECONDS
    while time.monotonic() < deadline:
        with try_exclusive(orphan.folder) as free:
            record = read_record(orphan.folder)
            if record is None or (record != orphan.record and record.agent != token):
                return False
            if free:
                replace(record, agent=token).write(orphan.folder)
                return True
        time.sleep(0.2)
    raise BusyError("a dead agent's worker is still running it")


def release(orphan: OrphanedTrial) -> None:
    """Clear the owner, so that later agents skip the trial; does nothing if another process has it by now."""
    with try_exclusive(orphan.folder) as free:
        if free and read_record(orphan.folder) == orphan.record:
            replace(orphan.record, agent="").write(orphan.folder)


def _folder(home: Home) -> Path:
    return home.root / "agents"
