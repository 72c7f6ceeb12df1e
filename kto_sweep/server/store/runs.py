"""Runs: their record, and the plain reads and writes of it."""

import json
import math
import random
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from kto_sweep.server.states import RunState
from kto_sweep.server.store import patterns
from kto_sweep.server.store.filters import FilterError, Order, Where
from kto_sweep.server.store.ids import friendly_name


@dataclass(frozen=True)
class Run:
    """One run, as its row stands."""

    id: int
    project_id: int
    name: str
    """The short id that clients call run id."""
    sweep_id: int | None
    agent_id: int | None
    state: RunState
    exitcode: int | None
    stop_requested: bool
    picked_up: bool
    """The agent has reported the run as its own since it was last handed out."""
    handed_out: int
    """How often the run was given to an agent."""
    assigned_at: float | None
    """When it was last given to an agent; seconds since the epoch, as every time here."""
    created_at: float
    heartbeat_at: float
    metric_count: int
    """History rows with a finite value of the sweep's metric."""
    metric_low: float | None
    metric_high: float | None
    metric_last: float | None
    objective: str | None
    """Name of the sweep's metric, where `objective_value` holds what the summary says of it."""
    objective_value: float | None
    display_name: str
    description: str | None
    notes: str | None
    group_name: str | None
    job_type: str | None
    host: str | None
    program: str | None
    repo: str | None
    commit_hash: str | None
    tags: tuple[str, ...]
    restart: dict[str, str]
    """For a run started again without resume: what is known of each stream (see server/restart.py)."""
    rung: int
    """The last band of successive halving at which the run was judged; 0: none."""
    paused: bool
    """It is to stop there, or has, and waits until it may go on; or did when its sweep ended."""
    cell_key: str | None
    suggested: dict[str, Any] | None
    """The configuration the search chose, whatever the script makes of it later."""
    config: str
    """JSON: `{"lr": {"value": 0.1}, "_wandb": …}`."""
    summary: str
    """JSON; may hold the bare words NaN and Infinity, as clients send them."""

    @property
    def is_paused(self) -> bool:
        """Successive halving has paused it, and it has stopped."""
        return self.paused and self.state is RunState.PREEMPTED


class Choice(NamedTuple):
    """Those parts of a run that say what its search chose."""

    id: int
    suggested: dict[str, Any] | None
    config: str


_COLUMNS = ", ".join(f"run.{field.name}" for field in fields(Run))


def _record(row: sqlite3.Row) -> Run:
    values = dict(row)
    values["state"] = RunState(values["state"])
    values["stop_requested"] = bool(values["stop_requested"])
    values["paused"] = bool(values["paused"])
    values["picked_up"] = bool(values["picked_up"])
    values["tags"] = tuple(json.loads(values["tags"]))
    values["restart"] = json.loads(values["restart"])
    values["suggested"] = json.loads(values["suggested"]) if values["suggested"] else None
    return Run(**values)


def get(connection: sqlite3.Connection, run_id: int) -> Run | None:
    """The run of row `run_id`."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM run WHERE id = ?", (run_id,)).fetchone()
    return _record(row) if row else None


def find(connection: sqlite3.Connection, project_id: int, name: str) -> Run | None:
    """The run that clients call `name`."""
    query = f"SELECT {_COLUMNS} FROM run WHERE project_id = ? AND name = ?"
    row = connection.execute(query, (project_id, name)).fetchone()
    return _record(row) if row else None


def find_by_path(connection: sqlite3.Connection, entity: str, project: str, name: str) -> Run | None:
    """The run at `entity/project/name`."""
    query = (
        f"SELECT {_COLUMNS} FROM run JOIN project ON project.id = run.project_id"
        " WHERE project.entity = ? AND project.name = ? AND run.name = ?"
    )
    row = connection.execute(query, (entity, project, name)).fetchone()
    return _record(row) if row else None


def of_sweep(connection: sqlite3.Connection, sweep_id: int, states: Sequence[RunState] = ()) -> list[Run]:
    """The sweep's own runs, oldest first; only those in `states` when any are given."""
    query = f"SELECT {_COLUMNS} FROM run WHERE sweep_id = ?"
    if states:
        query += f" AND state IN ({', '.join('?' * len(states))})"
    return [_record(row) for row in connection.execute(query + " ORDER BY id", (sweep_id, *states))]


def paused(connection: sqlite3.Connection, sweep_id: int) -> list[Run]:
    """The sweep's runs that successive halving has paused and that have stopped, oldest first."""
    query = f"SELECT {_COLUMNS} FROM run WHERE sweep_id = ? AND paused AND state = 'preempted' ORDER BY id"
    return [_record(row) for row in connection.execute(query, (sweep_id,))]


def in_sweep(sweep_id: int) -> Where:
    """The condition that a run is the sweep's own or one that it took over from another."""
    return Where(
        "run.sweep_id = ? OR run.id IN (SELECT run_id FROM prior_run WHERE sweep_id = ?)",
        (sweep_id, sweep_id),
    )


def prior_runs(connection: sqlite3.Connection, sweep_id: int) -> list[Run]:
    """The ended runs of other sweeps that this one counts as its own, oldest first."""
    query = (
        f"SELECT {_COLUMNS} FROM prior_run JOIN run ON run.id = prior_run.run_id"
        " WHERE prior_run.sweep_id = ? ORDER BY run.id"
    )
    return [_record(row) for row in connection.execute(query, (sweep_id,))]


def sweeps_of(connection: sqlite3.Connection, run: Run) -> list[int]:
    """The sweeps that count the run as theirs."""
    others = connection.execute("SELECT sweep_id FROM prior_run WHERE run_id = ?", (run.id,))
    return [row[0] for row in others] + ([] if run.sweep_id is None else [run.sweep_id])


def add_prior_run(connection: sqlite3.Connection, sweep_id: int, run_id: int) -> None:
    """Let the sweep count an ended run of another sweep as its own."""
    connection.execute("INSERT OR IGNORE INTO prior_run (sweep_id, run_id) VALUES (?, ?)", (sweep_id, run_id))


def page(
    connection: sqlite3.Connection, where: Where, order: Order | None, first: int, offset: int = 0
) -> list[Run]:
    """Up to `first` matching runs from `offset` on; runs without a value for the order come last.

    Raises FilterError when the condition takes too long.
    """
    direction = order.direction if order else "ASC"
    ordering = f"{order.sql} {direction} NULLS LAST, " if order and order.sql != "run.id" else ""
    # Ids first: sorting whole rows would drag their long texts through the sorter.
    ids = _selected(
        connection,
        f"SELECT run.id FROM run WHERE {where.sql} ORDER BY {ordering}run.id {direction} LIMIT ? OFFSET ?",
        (*where.parameters, *(order.parameters if order else ()), first, offset),
    )
    return [run for row in ids if (run := get(connection, row[0])) is not None]


def count(connection: sqlite3.Connection, where: Where) -> int:
    """How many runs match. Raises FilterError when the condition takes too long."""
    query = f"SELECT COUNT(*) FROM run WHERE {where.sql}"
    return int(_selected(connection, query, where.parameters)[0][0])


def _selected(connection: sqlite3.Connection, query: str, parameters: Sequence[Any]) -> list[sqlite3.Row]:
    """The rows of a query with a client's condition in it."""
    try:
        return connection.execute(query, parameters).fetchall()
    except sqlite3.OperationalError as problem:
        if patterns.timed_out(problem):
            raise FilterError("the $regex of the filter takes too long") from problem
        raise


def count_of_sweep(connection: sqlite3.Connection, sweep_id: int, states: Sequence[RunState] = ()) -> int:
    """How many runs the sweep has; only those in `states` when any are given."""
    query = "SELECT COUNT(*) FROM run WHERE sweep_id = ?"
    if states:
        query += f" AND state IN ({', '.join('?' * len(states))})"
    return int(connection.execute(query, (sweep_id, *states)).fetchone()[0])


def insert(
    connection: sqlite3.Connection,
    *,
    project_id: int,
    name: str,
    state: RunState,
    now: float,
    rng: random.Random,
    **values: Any,
) -> Run:
    """A new run, given a friendly display name unless `values` has one."""
    total = connection.execute("SELECT COUNT(*) FROM run WHERE project_id = ?", (project_id,)).fetchone()[0]
    values.setdefault("display_name", friendly_name(total + 1, rng))
    values |= {"project_id": project_id, "name": name, "state": state, "created_at": now, "heartbeat_at": now}
    columns = _as_columns(values)
    cursor = connection.execute(
        f"INSERT INTO run ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
        tuple(columns.values()),
    )
    created = get(connection, int(cursor.lastrowid or 0))
    assert created is not None
    return created


def update(connection: sqlite3.Connection, run_id: int, **values: Any) -> None:
    """Change the named columns."""
    columns = _as_columns(values)
    if columns:
        assignments = ", ".join(f"{column} = ?" for column in columns)
        connection.execute(f"UPDATE run SET {assignments} WHERE id = ?", (*columns.values(), run_id))


def delete(connection: sqlite3.Connection, run_id: int) -> None:
    """Remove the run with its lines, files and alerts."""
    connection.execute("DELETE FROM run WHERE id = ?", (run_id,))


def _as_columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as SQLite takes them: JSON, and a strict twin beside config and summary."""
    columns = dict(values)
    for name in ("tags", "suggested", "restart"):
        if columns.get(name) is not None:
            columns[name] = json.dumps(columns[name])
    for name in ("config", "summary"):
        if name in columns:
            columns[f"strict_{name}"] = as_strict_json(columns[name])
    if "summary" in columns:
        columns.setdefault("objective", None)  # until somebody has read the new summary
    return columns


def as_strict_json(text: str) -> str | None:
    """`text` with null for NaN and Infinity; None when it holds neither.

    Raises ValueError when `text` is no JSON object.
    """
    constants: list[str] = []
    parsed = json.loads(text, parse_constant=constants.append)
    if not isinstance(parsed, dict):
        raise ValueError("not a JSON object")
    # A number such as 1e999 is legal JSON text that Python reads as infinity.
    if not constants and not _has_infinity(parsed):
        return None
    return json.dumps(_without_infinity(parsed))


def _has_infinity(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_infinity, value.values()))
    if isinstance(value, list):
        return any(map(_has_infinity, value))
    return isinstance(value, float) and not math.isfinite(value)


def _without_infinity(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_infinity(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def of_agent(connection: sqlite3.Connection, agent_id: int, states: Sequence[RunState]) -> list[Run]:
    """The agent's runs in these states, oldest first."""
    marks = ", ".join("?" * len(states))
    query = f"SELECT {_COLUMNS} FROM run WHERE agent_id = ? AND state IN ({marks}) ORDER BY id"
    return [_record(row) for row in connection.execute(query, (agent_id, *states))]


def count_suggested(connection: sqlite3.Connection, sweep_id: int) -> int:
    """How many of the sweep's runs its search has chosen; runs that were attached by hand do not count."""
    query = "SELECT COUNT(*) FROM run WHERE sweep_id = ? AND suggested IS NOT NULL"
    return int(connection.execute(query, (sweep_id,)).fetchone()[0])


def suggestions(connection: sqlite3.Connection, sweep_id: int) -> list[dict[str, Any]]:
    """What the sweep's search has chosen, oldest first."""
    query = "SELECT suggested FROM run WHERE sweep_id = ? AND suggested IS NOT NULL ORDER BY id"
    return [json.loads(row[0]) for row in connection.execute(query, (sweep_id,))]


def count_handed_out(connection: sqlite3.Connection, sweep_id: int) -> int:
    """How many of the sweep's runs some agent was given."""
    query = "SELECT COUNT(*) FROM run WHERE sweep_id = ? AND handed_out > 0"
    return int(connection.execute(query, (sweep_id,)).fetchone()[0])


def without_cell_key(connection: sqlite3.Connection, sweep_id: int) -> list[Choice]:
    """What was chosen for the sweep's runs whose grid cell is not known yet, oldest first."""
    # Of a changed grid these are all runs, and to read their whole records would take most of the time.
    query = "SELECT id, suggested, config FROM run WHERE sweep_id = ? AND cell_key IS NULL ORDER BY id"
    return [
        Choice(run_id, json.loads(suggested) if suggested else None, config)
        for run_id, suggested, config in connection.execute(query, (sweep_id,))
    ]


def keep_cell_keys(connection: sqlite3.Connection, keys: Mapping[int, str]) -> None:
    """Note the grid cells of runs, by row."""
    connection.executemany(
        "UPDATE run SET cell_key = ? WHERE id = ?", [(key, id) for id, key in keys.items()]
    )


def forget_cell_keys(connection: sqlite3.Connection, sweep_id: int) -> None:
    """The sweep's space has changed, and with it what a cell is."""
    connection.execute("UPDATE run SET cell_key = NULL WHERE sweep_id = ?", (sweep_id,))


def silent_since(connection: sqlite3.Connection, moment: float, latest: float) -> list[Run]:
    """Runs whose process should be alive and was last heard of before `moment`.

    Or after `latest`, which is yet to come: it was before the clock was set back.
    """
    query = (
        f"SELECT {_COLUMNS} FROM run WHERE state IN ('running', 'preempting')"
        " AND heartbeat_at NOT BETWEEN ? AND ?"
    )
    return [_record(row) for row in connection.execute(query, (moment, latest))]
