"""Creates, changes and deletes runs for `upsertBucket` and related mutations."""

import json
import shutil
import sqlite3
from collections.abc import Mapping
from typing import Any

from kto_sweep.server import branching, sweep_progress
from kto_sweep.server.errors import RequestError
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.states import ENDED, RunState
from kto_sweep.server.store import artifacts, files, lines, projects, runs, sweeps
from kto_sweep.server.store.ids import from_global, new_name
from kto_sweep.server.store.lines import Stream
from kto_sweep.server.store.runs import Run
from kto_sweep.trial import RECORD, plain_config, unwrapped

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


def upsert(
    connection: sqlite3.Connection, server: ServerState, fields: Input, *, shared: bool = False
) -> tuple[Run, bool]:
    """Creates or updates a run; returns it and whether it is new.

    Clients send three kinds of upsert: the first of a run's process (with host and program), later ones of
    that process (configuration only), and edits through the public API (with the global id only). Only the
    first starts the run. `shared`: several processes write the run at once. Raises RequestError.
    """
    now = server.now()
    run = _find(connection, fields)
    created = run is None
    if run is None:
        run = _create(connection, server, fields, now)
    # A trial exists before its first process starts it.
    is_new = created or (_is_start(fields) and run.host is None and run.state is RunState.PENDING)
    if _is_start(fields) and not created:
        _restart(connection, run, resumed=bool(fields.get("id")), shared=shared)
    values = _changes(run, fields)
    if state := fields.get("state"):
        values["state"] = _state(state)
    if _is_start(fields):
        values["heartbeat_at"] = now
        if sweep_name := fields.get("sweep"):
            values["sweep_id"] = _sweep_id(connection, run.project_id, sweep_name)
    runs.update(connection, run.id, **values)
    changed = _reload(connection, run.id)
    if is_new:
        changed = _fork(connection, changed)
    if changed.sweep_id is not None and "summary" in values:
        sweep_progress.on_summary(connection, changed)
    if changed.sweep_id is not None and changed.state in ENDED:
        sweep_progress.finish_if_done(connection, changed.sweep_id)
    return changed, created


def _fork(connection: sqlite3.Connection, run: Run) -> Run:
    """The new run, with the history of the run that it branches off, if it does."""
    point = branching.branch_point(run.config)
    if point is None or point.run_name == run.name:
        return run
    branching.fork(connection, run, point)
    sweep_progress.recompute_run(connection, _reload(connection, run.id))
    return _reload(connection, run.id)


def _find(connection: sqlite3.Connection, fields: Input) -> Run | None:
    """The run by `id`, or by entity, project and name; None if it does not exist."""
    if global_id := fields.get("id"):
        row = from_global("Run", global_id)
        run = runs.get(connection, row) if row is not None else None
        if run is None and not fields.get("name"):
            raise RequestError(f"there is no run with id {global_id}")
        if run is not None:
            return run
    project = projects.find(connection, fields.get("entity_name"), fields.get("model_name"))
    name = fields.get("name")
    return runs.find(connection, project.id, name) if project and name else None


def _create(connection: sqlite3.Connection, server: ServerState, fields: Input, now: float) -> Run:
    project = projects.ensure(connection, fields.get("entity_name"), fields.get("model_name"), now)
    name = fields.get("name") or new_name(server.rng)
    return runs.insert(
        connection, project_id=project.id, name=name, state=RunState.RUNNING, now=now, rng=server.rng
    )


def _is_start(fields: Input) -> bool:
    """Whether this is the first upsert of a run's process: only that one has a host or program."""
    return bool(fields.get("host") or fields.get("job_program"))


def _restart(connection: sqlite3.Connection, run: Run, *, resumed: bool, shared: bool) -> None:
    """Marks the run as running again; a start without resume replaces logged data.

    As on W&B, a new row replaces the row that an earlier process logged at its step, and the rest stays; so
    `wandb sync` of a run that the server has changes nothing. Only a trial that the server assigned again
    starts over: no chart mixes two attempts.
    """
    if shared and run.state in (RunState.RUNNING, RunState.FINISHED):
        return  # another process started it, or ended it: a late one must not leave it running for ever
    # Keep a stop request from before the run's first process started, and one by successive halving.
    stop = run.stop_requested and (run.host is None or run.paused)
    runs.update(connection, run.id, state=RunState.RUNNING, exitcode=None, stop_requested=stop)
    if resumed or shared:
        return
    if run.state is RunState.PENDING and run.host is not None:
        for stream in Stream:
            lines.clear(connection, run.id, stream)
            runs.count_rewrite(connection, run.id, stream)
        runs.update(connection, run.id, summary="{}", overwrite_below=0)
        sweep_progress.recompute_run(connection, _reload(connection, run.id))
    else:
        # wandb sends its rows after these: it is told their number (historyLineCount).
        count = lines.count(connection, run.id, Stream.HISTORY)
        runs.update(connection, run.id, overwrite_below=count)


def _changes(run: Run, fields: Input) -> dict[str, Any]:
    """The columns that the client sets."""
    values = {
        column: fields[field] for field, column in _TEXT_FIELDS.items() if fields.get(field) is not None
    }
    if fields.get("tags") is not None:
        values["tags"] = list(dict.fromkeys(fields["tags"]))
    if fields.get("summary_metrics") is not None:
        values["summary"] = json_object(fields["summary_metrics"], "summary_metrics")
    if fields.get("config") is not None:
        config = json_object(fields["config"], "config")
        # A process knows only what it has set itself; the public API sends the edited whole, without a name.
        values["config"] = _merged_config(run.config, config) if fields.get("name") else config
    return values


def _merged_config(old: str, new: str) -> str:
    """The configuration of all processes of a run: what the newest one sends, and other keys of the others.

    wandb's own facts below `_wandb` hold an entry for each process (`e`), and where the run branched off.
    """
    before, after = json.loads(old), json.loads(new)
    merged = {**before, **after}
    facts = [unwrapped(config.get("_wandb")) for config in (before, after)]
    if all(isinstance(one, dict) for one in facts):
        merged["_wandb"] = {"value": {**facts[0], **facts[1]}}
        processes = [one["e"] for one in facts if isinstance(one.get("e"), dict)]
        if processes:
            merged["_wandb"]["value"]["e"] = {key: entry for one in processes for key, entry in one.items()}
    return json.dumps(merged)


def json_object(text: str, what: str) -> str:
    """`text` unchanged, after checking that it is a JSON object. Raises RequestError."""
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


def _reload(connection: sqlite3.Connection, run_id: int) -> Run:
    run = runs.get(connection, run_id)
    assert run is not None
    return run


def by_global_id(connection: sqlite3.Connection, global_id: str) -> Run:
    """The run of a global id. Raises RequestError for an unknown id."""
    row = from_global("Run", global_id)
    run = runs.get(connection, row) if row is not None else None
    if run is None:
        raise RequestError(f"there is no run with id {global_id}")
    return run


def by_path(connection: sqlite3.Connection, fields: Input) -> Run:
    """The run of entity_name, project_name and run_name. Raises RequestError for an unknown run."""
    entity, project, name = (fields.get(key) or "" for key in ("entity_name", "project_name", "run_name"))
    run = runs.find_by_path(connection, entity or projects.DEFAULT_ENTITY, project, name)
    if run is None:
        raise RequestError(f"there is no run {entity}/{project}/{name}")
    return run


def request_stop(connection: sqlite3.Connection, global_id: str) -> None:
    """Requests a stop: the process sees it in its file_stream response, the agent at its next heartbeat."""
    run = by_global_id(connection, global_id)
    if run.state is RunState.PENDING or (run.paused and run.state is RunState.PREEMPTED):
        runs.update(connection, run.id, state=RunState.KILLED, stop_requested=True)
    elif run.state not in ENDED:
        runs.update(connection, run.id, stop_requested=True, paused=False)


def set_state(connection: sqlite3.Connection, global_id: str, state: str) -> None:
    """Sets a run's state manually; an ended run that is set to pending is assigned again.

    Raises RequestError for an ended run that is set to failed, as on W&B.
    """
    run = by_global_id(connection, global_id)
    values: dict[str, Any] = {"state": _state(state), "paused": False}
    if run.state in ENDED and values["state"] is RunState.FAILED:
        raise RequestError(f"invalid state transition: the run is already {run.state}")
    if run.state in ENDED and values["state"] is RunState.PENDING:
        values |= {"agent_id": None, "picked_up": False, "stop_requested": False, "exitcode": None}
        values["handed_out"] = min(run.handed_out, 1)
    runs.update(connection, run.id, **values)
    if run.sweep_id is not None:
        sweep_progress.finish_if_done(connection, run.sweep_id)


def delete(
    connection: sqlite3.Connection, server: ServerState, global_id: str, delete_artifacts: bool = False
) -> None:
    """Deletes the run, its lines and its files, and if asked the artifacts that it logged first.

    A grid may run its cell again. Deleting the run again succeeds, as on W&B. Raises RequestError for an id
    that is not one of a run.
    """
    row = from_global("Run", global_id)
    if row is None:
        raise RequestError(f"{global_id!r} is not the id of a run")
    run = runs.get(connection, row)
    if run is None:
        return
    for artifact_id in artifacts.logged_by_run(connection, run.id) if delete_artifacts else ():
        artifacts.delete(connection, artifact_id)
    for sweep_id in runs.sweeps_of(connection, run):
        sweeps.update(connection, sweep_id, grid_cursor=0, exhausted=False)
    runs.delete(connection, run.id)
    shutil.rmtree(server.files / str(run.id), ignore_errors=True)


def add_alert(connection: sqlite3.Connection, server: ServerState, fields: Input) -> None:
    """Stores a `run.alert()`."""
    run = by_path(connection, fields)
    severity = str(fields.get("severity") or "INFO")
    files.add_alert(
        connection, run.id, files.AlertRecord(severity, fields["title"], fields["text"], server.now())
    )


def as_config_json(config: Mapping[str, Any]) -> str:
    """A plain configuration as W&B's config JSON: `{"lr": {"value": 0.1}}`."""
    return json.dumps({name: {"value": value} for name, value in config.items()})


def chosen_config(run: Run) -> dict[str, Any]:
    """The configuration that the search chose for the run, else its current configuration."""
    return run.suggested if run.suggested is not None else config_of(run.config)


def config_of(text: str) -> dict[str, Any]:
    """`trial.plain_config` of a run's config JSON."""
    return plain_config(json.loads(text))


def run_record(text: str) -> dict[str, Any]:
    """What a run was trained with (see provenance.py), from its config JSON; empty if that has no record."""
    record = unwrapped(json.loads(text).get(RECORD))
    return record if isinstance(record, dict) else {}
