"""Actions of the dashboard: change a sweep's state, stop a run, edit its tags and notes."""

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from kto_sweep.server import run_writes, sweep_writes
from kto_sweep.server.errors import RequestError
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store import runs, sweeps
from kto_sweep.server.store.ids import to_global
from kto_sweep.server.store.runs import Run
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_view import sweep_view
from kto_sweep.sweep.sweep_state import WIRE_STATES, Action, read_sweep_status

MAX_TAGS = 50
MAX_TAG = 64
MAX_NOTES = 10_000

Change = Callable[[sqlite3.Connection], object]


def of_sweep(server: ServerState, sweep: Sweep, body: Mapping[str, Any]) -> Change:
    """The database write for an action on a sweep, as on the command line. Raises RequestError."""
    try:
        action = Action(str(body.get("action")))
    except ValueError as problem:
        raise RequestError(f"{body.get('action')!r} is not one of {', '.join(Action)}") from problem
    change = {"id": to_global("Sweep", sweep.id), "state": WIRE_STATES[action]}

    def write(connection: sqlite3.Connection) -> None:
        current = sweeps.get(connection, sweep.id) or sweep
        status = read_sweep_status(sweep_view(connection, server, current))
        if refused := status.refusal(action):
            raise RequestError(f"it is {status.state}: {refused.reason}; instead: {refused.hint}")
        if action is Action.RESUME:
            for run_id in status.grid.retried_by_resume():
                run = runs.find(connection, sweep.project_id, run_id)
                if run is not None:
                    run_writes.set_state(connection, to_global("Run", run.id), "pending")
        sweep_writes.upsert(connection, server, change)

    return write


def of_run(server: ServerState, run: Run, body: Mapping[str, Any]) -> Change:
    """The database write for an action on a run: `stop`, `annotate` (tags, notes). Raises RequestError."""
    identifier = to_global("Run", run.id)
    match body.get("action"):
        case "stop":
            return lambda connection: run_writes.request_stop(connection, identifier)
        case "annotate":
            change = {
                "id": identifier,
                "tags": _tags(body.get("tags")),
                "notes": _notes(body.get("notes")),
            }
            return lambda connection: run_writes.upsert(connection, server, change)
        case other:
            raise RequestError(f"{other!r} is neither stop nor annotate")


def _tags(value: object) -> list[str]:
    if not isinstance(value, list) or len(value) > MAX_TAGS:
        raise RequestError(f"tags must be a list of at most {MAX_TAGS} strings")
    if not all(isinstance(tag, str) and 0 < len(tag) <= MAX_TAG for tag in value):
        raise RequestError(f"a tag must be a string of 1 to {MAX_TAG} characters")
    return value


def _notes(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_NOTES:
        raise RequestError(f"notes must be a string of at most {MAX_NOTES} characters")
    return value
