"""Sends offline runs, and runs whose server was unreachable, from the wandb files in their folders."""

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
from kto_sweep.sweep.ref import LOCAL_ENTITY, SweepRef
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
    """A run that, according to this box's record, no server has completely."""

    run_id: str
    folder: Path
    record: RunRecord

    @property
    def path(self) -> str:
        """entity/project/run; an offline run may have no entity yet."""
        return "/".join(filter(None, (self.record.entity, self.record.project, self.run_id)))


@dataclass(frozen=True)
class SyncResult:
    """The result of syncing one run."""

    run_id: str
    path: str
    """entity/project/run"""
    error: str
    """Why it was not sent; empty if the server has it."""
    hint: str = ""
    """What to type instead."""
    already_synced: bool = False
    """Whether the server already had it."""


def find_unsynced(home: Home, run_id: str | None) -> list[UnsyncedRun]:
    """The offline runs, and those whose end their server did not confirm; with `run_id`, only that run.

    Without the embedded server's database, such as in a home to which only the runs were moved, these are
    all runs of that server.
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
        if record is not None and _needs_sync(home, record, folder)
    ]


def _needs_sync(home: Home, record: RunRecord, folder: Path) -> bool:
    """Whether to send a run: not if an agent may continue it, or `wandb sync` has sent it."""
    if not record.is_offline:
        has_server = record.sent and (home.database.exists() or not record.local)
        return record.ended and not has_server
    if record.sent:
        return False
    files = list((folder / "wandb").glob("offline-run-*/*.wandb"))
    if all(file.with_name(f"{file.name}.synced").exists() for file in files):
        return False
    with try_exclusive(folder) as free:  # no agent continues an offline run that was killed
        return record.ended or free


def sync_runs(home: Home, runs: list[UnsyncedRun], *, local: bool = False) -> Iterator[SyncResult]:
    """Send each run to its own server, grouped by server; yields the results.

    Offline runs go to W&B, with `local` to the embedded server. An unreachable server is an error of its own
    runs only.
    """
    runs_by_server: dict[tuple[bool, str], list[UnsyncedRun]] = {}
    for run in runs:
        server = (run.record.local or (local and run.record.is_offline), run.record.base_url)
        runs_by_server.setdefault(server, []).append(run)
    for (to_local, base_url), server_runs in runs_by_server.items():
        reported = set()
        with restored_environment():  # so that one server's key is not sent to the next
            try:
                target = local_target(home) if to_local else find_remote(base_url or None)
                api = connect(target)
                assigned = [_assign(run, target, api) for run in server_runs]
                for result in _sync_to(home, target, api, assigned):
                    reported.add(result.run_id)
                    yield result
            except KtoSweepError as error:
                for run in server_runs:
                    if run.run_id not in reported:
                        yield replace(_result(run, error.message), hint=_hint(run, error))


def _hint(run: UnsyncedRun, error: KtoSweepError) -> str:
    """What to do about the error of the run's server."""
    other = f"to send it to the embedded server: kto-sweep sync {run.run_id} --local"
    return "; ".join(filter(None, (error.hint, other if run.record.is_offline else "")))


def _assign(run: UnsyncedRun, target: Target, api: "wandb.Api") -> UnsyncedRun:
    """The run with its server in the record, also if it was offline until now."""
    if not run.record.is_offline:
        return run
    entity = run.record.entity or (LOCAL_ENTITY if target.local else str(api.default_entity))
    base_url = "" if target.local else target.base_url
    return replace(run, record=replace(run.record, entity=entity, local=target.local, base_url=base_url))


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
    return SyncResult(run.run_id, run.path, error)
