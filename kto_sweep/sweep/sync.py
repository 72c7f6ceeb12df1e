"""Runs that ended while their server was gone: sent later, from wandb's own files in their folders."""

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
from kto_sweep.run_log import last_step
from kto_sweep.run_record import RunRecord, home_id, read_record, try_exclusive
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.server_choice import find_remote, local_target
from kto_sweep.sweep.view import OWNER
from kto_sweep.wandb_client.connection import Target, connect, other_server
from kto_sweep.wandb_client.private_api import read_run

if TYPE_CHECKING:
    import wandb

HEARD = frozenset({"finished", "failed", "killed", "preempted", "preempting"})
"""States of a run of which the server has heard the end; a crashed one has only fallen silent."""


@dataclass(frozen=True)
class Unsent:
    """A run of this box that its server does not have as a whole, by what the box knows."""

    run_id: str
    folder: Path
    record: RunRecord


@dataclass(frozen=True)
class Outcome:
    """What became of one of them."""

    run_id: str
    path: str
    """entity/project/run"""
    trouble: str
    """Why it was not sent; empty when the server has it now."""
    was_there: bool = False
    """The server had it already."""


def find_unsent(home: Home, run_id: str | None) -> list[Unsent]:
    """The runs that ended without word from their server; with `run_id` that run, whatever is known of it.

    Raises UsageError when this box has no such run.
    """
    if run_id is not None:
        record = read_record(home.runs / run_id) if Path(run_id).name == run_id else None
        if record is None:
            raise UsageError(
                f"this box has no run {run_id!r}", hint=f"its runs are the folders in {home.runs}"
            )
        return [Unsent(run_id, home.runs / run_id, record)]
    found = ((folder, read_record(folder)) for folder in sorted(home.runs.glob("*")))
    return [
        Unsent(folder.name, folder, record)
        for folder, record in found
        if record is not None and record.ended and not record.sent
    ]


def send(home: Home, runs: list[Unsent]) -> Iterator[Outcome]:
    """Send each run to the server that it belongs to, the runs of one server together.

    A server that cannot be had is the trouble of its runs and no more.
    """
    servers: dict[tuple[bool, str], list[Unsent]] = {}
    for run in runs:
        place = (True, "") if run.record.local else (False, run.record.base_url)
        servers.setdefault(place, []).append(run)
    for (local, base_url), theirs in servers.items():
        told = set()
        with other_server():  # the key of one is not for the next
            try:
                target = local_target(home) if local else find_remote(base_url)
                for outcome in _send_to(home, target, connect(target), theirs):
                    told.add(outcome.run_id)
                    yield outcome
            except KtoSweepError as error:
                yield from (_outcome(run, error.message) for run in theirs if run.run_id not in told)


def _send_to(home: Home, target: Target, api: "wandb.Api", runs: list[Unsent]) -> Iterator[Outcome]:
    with ExitStack() as claims:
        going = []
        for run in runs:
            if not claims.enter_context(try_exclusive(run.folder)):
                yield _outcome(run, "an agent works on it")
                continue
            there = _read(api, run)
            if there is not None and there[1].get(OWNER, home_id(home)) != home_id(home):
                yield _outcome(run, "another box went on with it")
            elif _is_whole(there, run):
                yield _note_sent(run, was_there=True)
            else:
                going.append(run)
        words = _sync(target, going) if going else ""
        for run in going:
            if _is_whole(_read(api, run), run):
                yield _note_sent(run, was_there=False)
            else:
                yield _outcome(run, f"wandb could not send it: {words}")


def _sync(target: Target, runs: list[Unsent]) -> str:
    """The last words of wandb, which sends the runs, each with all its attempts in order.

    One call for each attempt: wandb ends at a file that was cut off, as that of a killed agent is.
    """
    environ = dict(os.environ)
    target.enter(environ)
    words = ""
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
        words = done.stdout.strip().rpartition("\n")[2]
    return words


def _read(api: "wandb.Api", run: Unsent) -> tuple[str, Mapping[str, Any], Mapping[str, Any]] | None:
    record = run.record
    return read_run(api, SweepRef(record.entity, record.project, record.sweep), run.run_id)


def _is_whole(there: tuple[str, Mapping[str, Any], Mapping[str, Any]] | None, run: Unsent) -> bool:
    """Whether the server has heard the run's end and has its last row."""
    if there is None:
        return False
    state, _, summary = there
    return state in HEARD and int(summary.get("_step") or 0) >= last_step(run.folder)


def _note_sent(run: Unsent, *, was_there: bool) -> Outcome:
    replace(run.record, ended=True, sent=True).write(run.folder)
    return replace(_outcome(run, ""), was_there=was_there)


def _outcome(run: Unsent, trouble: str) -> Outcome:
    return Outcome(run.run_id, f"{run.record.entity}/{run.record.project}/{run.run_id}", trouble)
