"""Creating, changing and deleting runs as `UpsertBucket` and its relatives ask for it."""

import json
import shutil
import sqlite3
from collections.abc import Mapping
from typing import Any

from kto_sweep.server import overwritten_runs, sweep_progress
from kto_sweep.server.errors import RequestError
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.states import ENDED, RunState
from kto_sweep.server.store import files, projects, runs, sweeps
from kto_sweep.server.store.ids import from_global, new_name
from kto_sweep.server.store.runs import Run

Input = Mapping[str, Any]

_TEXT_FIELDS = {
    "description": "description",
    "display_name": "display_name",
    "notes": "notes",
    "group_name": "group_name",
    "job_type": "job_type",
    "host": "host",
    "job_program": "program",
    "job_repo": "repo",
    "commit": "commit_hash",
}


def upsert(connection: sqlite3.Connection, server: ServerState, wanted: Input) -> tuple[Run, bool]:
    """The run that the client named, created or changed, and whether it is new.

    Three kinds of upsert come in: the first of a run's process (with host and program), later ones of that
    process (configuration only), and edits through the public API (with the opaque id only). Only the first
    starts the run.
    Raises RequestError.
    """
    now = server.now()
    run = _named(connection, wanted)
    created = run is None
    if run is None:
        run = _create(connection, server, wanted, now)
    elif _is_start(wanted):
        _start_again(connection, run, overwrite=not wanted.get("id"))
    values = _changes(wanted)
    if state := wanted.get("state"):
        values["state"] = _state(state)
    if _is_start(wanted):
        values["heartbeat_at"] = now
        if sweep_name := wanted.get("sweep"):
            values["sweep_id"] = _sweep_id(connection, run.project_id, sweep_name)
    runs.update(connection, run.id, **values)
    changed = _again(connection, run.id)
    if changed.sweep_id is not None and "summary" in values:
        sweep_progress.on_summary(connection, changed)
    if changed.sweep_id is not None and changed.state in ENDED:
        sweep_progress.finish_if_done(connection, changed.sweep_id)
    return changed, created


def _named(connection: sqlite3.Connection, wanted: Input) -> Run | None:
    """The run that `id` or entity, project and name stand for, if there is one."""
    if opaque := wanted.get("id"):
        row = from_global("Run", opaque)
        run = runs.get(connection, row) if row is not None else None
        if run is None and not wanted.get("name"):
            raise RequestError(f"there is no run with id {opaque}")
        if run is not None:
            return run
    project = projects.find(connection, wanted.get("entity_name"), wanted.get("model_name"))
    name = wanted.get("name")
    return runs.find(connection, project.id, name) if project and name else None


def _create(connection: sqlite3.Connection, server: ServerState, wanted: Input, now: float) -> Run:
    project = projects.ensure(connection, wanted.get("entity_name"), wanted.get("model_name"), now)
    name = wanted.get("name") or new_name(server.rng)
    return runs.insert(
        connection, project_id=project.id, name=name, state=RunState.RUNNING, now=now, rng=server.rng
    )


def _is_start(wanted: Input) -> bool:
    """Only a run's own process says where it runs, and it does so once."""
    return bool(wanted.get("host") or wanted.get("job_program"))


def _start_again(connection: sqlite3.Connection, run: Run, *, overwrite: bool) -> None:
    """The run is running; `overwrite` (a start without resume) lets it replace what was logged."""
    # A stop asked for before the run's first process came up is still to be obeyed by it.
    # So is one by successive halving, whoever goes on with the run.
    stop = run.stop_requested and (run.host is None or run.paused)
    runs.update(connection, run.id, state=RunState.RUNNING, exitcode=None, stop_requested=stop)
    # A run that waits may have had a process before: it was put back, or is to be tried again.
    if overwrite and (run.state is not RunState.PENDING or run.host is not None):
        runs.update(connection, run.id, summary="{}")
        overwritten_runs.mark_restarted(connection, run)
    elif run.restart:
        runs.update(connection, run.id, restart={})


def _changes(wanted: Input) -> dict[str, Any]:
    """The columns that the client wants to set."""
    values = {
        column: wanted[field] for field, column in _TEXT_FIELDS.items() if wanted.get(field) is not None
    }
    if wanted.get("tags") is not None:
        values["tags"] = list(dict.fromkeys(wanted["tags"]))
    for field, column in (("config", "config"), ("summary_metrics", "summary")):
        if wanted.get(field) is not None:
            values[column] = json_object(wanted[field], field)
    return values


def json_object(text: str, what: str) -> str:
    """`text` unchanged, if it is a JSON object. Raises RequestError."""
    try:
        runs.as_strict_json(text)
    except (ValueError, RecursionError) as problem:
        raise RequestError(f"{what} is not a JSON object: {problem}") from problem
    return text


def _state(text: str) -> RunState:
    try:
        return RunState(text.lower())
    except ValueError as problem:
        raise RequestError(f"{text!r} is not a run state") from problem


def _sweep_id(connection: sqlite3.Connection, project_id: int, name: str) -> int | None:
    sweep = sweeps.find(connection, project_id, name)
    return sweep.id if sweep else None


def _again(connection: sqlite3.Connection, run_id: int) -> Run:
    run = runs.get(connection, run_id)
    assert run is not None
    return run


def by_opaque_id(connection: sqlite3.Connection, opaque: str) -> Run:
    """The run of an opaque id. Raises RequestError when there is none."""
    row = from_global("Run", opaque)
    run = runs.get(connection, row) if row is not None else None
    if run is None:
        raise RequestError(f"there is no run with id {opaque}")
    return run


def by_path(connection: sqlite3.Connection, wanted: Input) -> Run:
    """The run of entity_name, project_name and run_name. Raises RequestError when there is none."""
    entity, project, name = (wanted.get(key) or "" for key in ("entity_name", "project_name", "run_name"))
    run = runs.find_by_path(connection, entity or projects.DEFAULT_ENTITY, project, name)
    if run is None:
        raise RequestError(f"there is no run {entity}/{project}/{name}")
    return run


def request_stop(connection: sqlite3.Connection, opaque: str) -> None:
    """Ask the run to stop: its process hears it from file_stream, its agent from the next heartbeat."""
    run = by_opaque_id(connection, opaque)
    if run.state is RunState.PENDING or (run.paused and run.state is RunState.PREEMPTED):
        runs.update(connection, run.id, state=RunState.KILLED, stop_requested=True)
    elif run.state not in ENDED:
        runs.update(connection, run.id, stop_requested=True, paused=False)


def set_state(connection: sqlite3.Connection, opaque: str, state: str) -> None:
    """Put the run into a state by hand; an ended one that is made pending is handed out again."""
    run = by_opaque_id(connection, opaque)
    values: dict[str, Any] = {"state": _state(state), "paused": False}
    if run.state in ENDED and values["state"] is RunState.PENDING:
        values |= {"agent_id": None, "picked_up": False, "stop_requested": False, "exitcode": None}
        values["handed_out"] = min(run.handed_out, 1)
    runs.update(connection, run.id, **values)
    if run.sweep_id is not None:
        sweep_progress.finish_if_done(connection, run.sweep_id)


def delete(connection: sqlite3.Connection, server: ServerState, opaque: str) -> None:
    """Remove the run, its lines and its files; a grid may visit its cell again."""
    run = by_opaque_id(connection, opaque)
    for sweep_id in runs.sweeps_of(connection, run):
        sweeps.update(connection, sweep_id, grid_cursor=0, exhausted=False)
    runs.delete(connection, run.id)
    shutil.rmtree(server.files / str(run.id), ignore_errors=True)


def add_alert(connection: sqlite3.Connection, server: ServerState, wanted: Input) -> None:
    """Keep what `run.alert()` said."""
    run = by_path(connection, wanted)
    severity = str(wanted.get("severity") or "INFO")
    files.add_alert(connection, run.id, files.Alert(severity, wanted["title"], wanted["text"], server.now()))


def as_config_json(config: Mapping[str, Any]) -> str:
    """A plain configuration in the form in which runs keep theirs: `{"lr": {"value": 0.1}}`."""
    return json.dumps({name: {"value": value} for name, value in config.items()})


def chosen_config(run: Run) -> dict[str, Any]:
    """The configuration that a search chose for the run; of a run that none chose, the one it has now."""
    return run.suggested if run.suggested is not None else plain_config(run.config)


def plain_config(text: str) -> dict[str, Any]:
    """The configuration in a run's config JSON, without W&B's own entry and without the `value` wrapping."""
    config = json.loads(text)
    return {
        name: entry["value"] if isinstance(entry, dict) and "value" in entry else entry
        for name, entry in config.items()
        if name != "_wandb"
    }
