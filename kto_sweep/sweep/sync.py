"""Sends runs that ended while their server was unreachable, from the wandb files in their folders."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kto_sweep.errors import KtoSweepError, UsageError
from kto_sweep.home import Home
from kto_sweep.locks import try_exclusive
from kto_sweep.run_log import last_step
from kto_sweep.run_record import RunRecord, home_id, read_record
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.server_choice import find_remote, local_target
from kto_sweep.sweep.view import OWNER
from kto_sweep.wandb_client.connection import Target, connect, restored_environment
from kto_sweep.wandb_client.private_api import read_run

if TYPE_CHECKING:
    import wandb

ENDED_STATES = frozenset({"finished", "failed", "killed", "preempted", "preempting"})
"""States of a run whose end reached the server; `crashed` only means that its heartbeats stopped."""


@dataclass(frozen=True)
class UnsyncedRun:
    """A run that, according to this box's record, its server does not have completely."""

    run_id: str
    folder: Path
    record: RunRecord


@dataclass(frozen=True)
class SyncResult:
    """The result of syncing one run."""

    run_id: str
    path: str
    """entity/project/run"""
    error: str
    """Why it was not sent; empty if the server has it."""
    already_synced: bool = False
    """Whether the server already had it."""


def find_unsynced(home: Home, run_id: str | None) -> list[UnsyncedRun]:
    """The runs whose end their server did not confirm; with `run_id`, that run, whatever its record says.

    Raises UsageError if this box has no such run.
    """
    if run_id is not None:
        record = read_record(home.runs / run_id) if Path(run_id).name == run_id else None
        if record is None:
            raise UsageError(
                f"this box has no run {run_id!r}", hint=f"its runs are the folders in {home.runs}"
            )
        return [UnsyncedRun(run_id, home.runs / run_id, record)]
    records = ((folder, read_record(folder)) for folder in sorted(home.runs.glob("*")))
    return [
        UnsyncedRun(folder.name, folder, record)
        for folder, record in records
        if record is not None and record.ended and not record.sent
    ]


def sync_runs(home: Home, runs: list[UnsyncedRun]) -> Iterator[SyncResult]:
    """Send each run to its own server, grouped by server; yields the results.

    An unreachable server is an error of its own runs only.
    """
    runs_by_server: dict[tuple[bool, str], list[UnsyncedRun]] = {}
    for run in runs:
        server = (True, "") if run.record.local else (False, run.record.base_url)
        runs_by_server.setdefault(server, []).append(run)
    for (local, base_url), server_runs in runs_by_server.items():
        reported = set()
        with restored_environment():  # so that one server's key is not sent to the next
            try:
                target = local_target(home) if local else find_remote(base_url)
                for result in _sync_to(home, target, connect(target), server_runs):
                    reported.add(result.run_id)
                    yield result
            except KtoSweepError as error:
                yield from (_result(run, error.message) for run in server_runs if run.run_id not in reported)


def _sync_to(home: Home, target: Target, api: "wandb.Api", runs: list[UnsyncedRun]) -> Iterator[SyncResult]:
    with ExitStack() as claims:
        to_send = []
        for run in runs:
            if not claims.enter_context(try_exclusive(run.folder)):
                yield _result(run, "an agent is training it")
                continue
            remote = _read(api, run)
            if remote is not None and remote[1].get(OWNER, home_id(home)) != home_id(home):
                yield _result(run, "another box took it over")
            elif _is_complete(remote, run):
                yield _record_sent(run, already_synced=True)
            else:
                to_send.append(run)
        last_line = _wandb_sync(target, to_send) if to_send else ""
        for run in to_send:
            if _is_complete(_read(api, run), run):
                yield _record_sent(run, already_synced=False)
            else:
                yield _result(run, f"wandb sync failed: {last_line}")


def _wandb_sync(target: Target, runs: list[UnsyncedRun]) -> str:
    """Run `wandb sync` for every attempt of every run in order; returns its last output line.

    Each attempt needs its own call, because wandb stops at a truncated file, such as that of a killed agent.
    """
    environ = dict(os.environ)
    target.export(environ)
    last_line = ""
    for folder in (folder for run in runs for folder in sorted((run.folder / "wandb").glob("*run-*"))):
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", "--include-online", "--include-synced", str(folder)],
            env=environ | {"WANDB_SILENT": "false"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        last_line = done.stdout.strip().rpartition("\n")[2]
    return last_line


def _read(api: "wandb.Api", run: UnsyncedRun) -> tuple[str, Mapping[str, Any], Mapping[str, Any]] | None:
    record = run.record
    return read_run(api, SweepRef(record.entity, record.project, record.sweep), run.run_id)


def _is_complete(remote: tuple[str, Mapping[str, Any], Mapping[str, Any]] | None, run: UnsyncedRun) -> bool:
    """Whether the server has the run's end and its last row."""
    if remote is None:
        return False
    state, _, summary = remote
    return state in ENDED_STATES and int(summary.get("_step") or 0) >= last_step(run.folder)


def _record_sent(run: UnsyncedRun, *, already_synced: bool) -> SyncResult:
    replace(run.record, ended=True, sent=True).write(run.folder)
    return replace(_result(run, ""), already_synced=already_synced)


def _result(run: UnsyncedRun, error: str) -> SyncResult:
    return SyncResult(run.run_id, f"{run.record.entity}/{run.record.project}/{run.run_id}", error)
