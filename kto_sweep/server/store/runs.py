"""Run records: reads and writes."""

import json
import math
import random
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from kto_sweep.server.states import RunState
from kto_sweep.server.store.filters import Order, Where, compile_order, select
from kto_sweep.server.store.ids import friendly_name
from kto_sweep.server.store.lines import Stream


@dataclass(frozen=True)
class Run:
    """A row of the run table. Times are in seconds since the epoch."""

    id: int
    project_id: int
    name: str
    """The run id of clients."""
    sweep_id: int | None
    agent_id: int | None
    state: RunState
    exitcode: int | None
    stop_requested: bool
    picked_up: bool
    """The agent reported the run after its last assignment."""
    handed_out: int
    """How often the run was assigned to an agent."""
    assigned_at: float | None
    """Time of the last assignment."""
    created_at: float
    heartbeat_at: float
    metric_count: int
    """History rows with a finite value of the sweep's metric."""
    metric_low: float | None
    metric_high: float | None
    metric_last: float | None
    objective: str | None
    """Name of the sweep's metric, if `objective_value` holds its value in the summary."""
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
    overwrite_below: int
    """History lines with lower numbers are of earlier processes: a new row replaces theirs of its step."""
    history_rewrites: int
    """How often lines of its history were replaced or deleted."""
    events_rewrites: int
    """The same for its system metrics."""
    rung: int
    """The last band at which successive halving judged the run; 0: none."""
    paused: bool
    """Successive halving paused it: it is stopping, has stopped, or was paused when its sweep ended."""
    cell_key: str | None
    suggested: dict[str, Any] | None
    """The configuration that the search chose, unaffected by later changes of the script."""
    config: str
    """JSON: `{"lr": {"value": 0.1}, "_wandb": …}`."""
    summary: str
    """JSON; may contain NaN and Infinity, as clients send them."""

    @property
    def is_paused(self) -> bool:
        """Whether successive halving paused it and it has stopped."""
        return self.paused and self.state is RunState.PREEMPTED


class RunConfig(NamedTuple):
    """The columns of a run that hold the search's choice."""

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
    values["suggested"] = json.loads(values["suggested"]) if values["suggested"] else None
    return Run(**values)


def get(connection: sqlite3.Connection, run_id: int) -> Run | None:
    """The run of row `run_id`."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM run WHERE id = ?", (run_id,)).fetchone()
    return _record(row) if row else None


def find(connection: sqlite3.Connection, project_id: int, name: str) -> Run | None:
    """The run with this run id."""
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
    """The sweep's runs that successive halving paused and that have stopped, oldest first."""
    query = f"SELECT {_COLUMNS} FROM run WHERE sweep_id = ? AND paused AND state = 'preempted' ORDER BY id"
    return [_record(row) for row in connection.execute(query, (sweep_id,))]


def in_sweep(sweep_id: int) -> Where:
    """The condition for the sweep's own and prior runs."""
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
    """Adds an ended run of another sweep as a prior run."""
    connection.execute("INSERT OR IGNORE INTO prior_run (sweep_id, run_id) VALUES (?, ?)", (sweep_id, run_id))


def page(
    connection: sqlite3.Connection, where: Where, order: Order | None, first: int, offset: int = 0
) -> list[Run]:
    """Up to `first` matching runs from `offset` on; runs without a value for the order come last.

    Raises FilterError when the condition takes too long.
    """
    direction = order.direction if order else "ASC"
    ordering = f"{order.sql} {direction} NULLS LAST, " if order and order.sql != "run.id" else ""
    # Select ids first: sorting whole rows would move their long texts through the sorter.
    ids = select(
        connection,
        f"SELECT run.id FROM run WHERE {where.sql} ORDER BY {ordering}run.id {direction} LIMIT ? OFFSET ?",
        (*where.parameters, *(order.parameters if order else ()), first, offset),
    )
    return [run for row in ids if (run := get(connection, row[0])) is not None]


def last_change(connection: sqlite3.Connection, sweep_id: int) -> tuple[int, int]:
    """The highest change number of the sweep's own and prior runs (0 without one), and how many there are."""
    prior = (
        "SELECT run.change FROM prior_run JOIN run ON run.id = run_id"
        " WHERE prior_run.sweep_id = ?1 AND run.sweep_id IS NOT ?1"
    )
    query = f"SELECT change FROM run WHERE sweep_id = ?1 UNION ALL {prior}"
    latest, number = connection.execute(
        f"SELECT COALESCE(MAX(change), 0), COUNT(*) FROM ({query})", (sweep_id,)
    ).fetchone()
    return int(latest), int(number)


def changes(connection: sqlite3.Connection, project_id: int, names: Sequence[str]) -> dict[str, int]:
    """The number of the last change of each of these runs."""
    query = "SELECT name, change FROM run WHERE project_id = ? AND name IN (SELECT value FROM json_each(?))"
    return dict(tuple(row) for row in connection.execute(query, (project_id, json.dumps(names))))


def values(connection: sqlite3.Connection, sweep_id: int, column: str | None, name: str) -> dict[str, Any]:
    """By run of a sweep: a column of the table, which is no client's text; else `name` in the summary."""
    where = in_sweep(sweep_id)
    if column is not None:
        rows = connection.execute(f"SELECT name, {column} FROM run WHERE {where.sql}", where.parameters)
        return {run: json.loads(value) if column == "tags" else value for run, value in rows}
    order = compile_order(f"summary_metrics.{name}")
    assert order is not None
    return dict(
        tuple(row)
        for row in connection.execute(
            f"SELECT name, {order.sql} FROM run WHERE {where.sql}", (*order.parameters, *where.parameters)
        )
    )


def count(connection: sqlite3.Connection, where: Where) -> int:
    """How many runs match. Raises FilterError when the condition takes too long."""
    query = f"SELECT COUNT(*) FROM run WHERE {where.sql}"
    return int(select(connection, query, where.parameters)[0][0])


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
    """Creates a run, with a random display name unless `values` has one."""
    if "display_name" not in values:
        query = "SELECT COUNT(*) FROM run WHERE project_id = ?"
        total = connection.execute(query, (project_id,)).fetchone()[0]
        values["display_name"] = friendly_name(total + 1, rng)
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
    """Updates the given columns."""
    columns = _as_columns(values)
    if columns:
        assignments = ", ".join(f"{column} = ?" for column in columns)
        connection.execute(f"UPDATE run SET {assignments} WHERE id = ?", (*columns.values(), run_id))


def rewrites(connection: sqlite3.Connection, run_id: int, stream: Stream) -> int:
    """How often lines of this stream of the run were replaced or deleted; 0 for console lines."""
    if stream is Stream.OUTPUT:
        return 0
    row = connection.execute(f"SELECT {stream}_rewrites FROM run WHERE id = ?", (run_id,)).fetchone()
    return int(row[0]) if row else 0


def count_rewrite(connection: sqlite3.Connection, run_id: int, stream: Stream) -> None:
    """Records that lines of this stream were replaced or deleted: what was derived from them is stale."""
    if stream is not Stream.OUTPUT:
        column = f"{stream}_rewrites"
        connection.execute(f"UPDATE run SET {column} = {column} + 1 WHERE id = ?", (run_id,))


def delete(connection: sqlite3.Connection, run_id: int) -> None:
    """Deletes the run with its lines, files and alerts."""
    connection.execute("DELETE FROM run WHERE id = ?", (run_id,))


def _as_columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as columns: JSON-encoded, with strict JSON copies of config and summary."""
    columns = dict(values)
    for name in ("tags", "suggested"):
        if columns.get(name) is not None:
            columns[name] = json.dumps(columns[name])
    for name in ("config", "summary"):
        if name in columns:
            columns[f"strict_{name}"] = as_strict_json(columns[name])
    if "summary" in columns:
        columns.setdefault("objective", None)  # stale until the new summary is read
    return columns


def as_strict_json(text: str) -> str | None:
    """`text` with null for NaN and Infinity; None when it contains neither.

    Raises ValueError when `text` is not a JSON object.
    """
    constants: list[str] = []
    parsed = json.loads(text, parse_constant=constants.append)
    if not isinstance(parsed, dict):
        raise ValueError("not a JSON object")
    # A number such as 1e999 is valid JSON, which Python parses as infinity.
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
    placeholders = ", ".join("?" * len(states))
    query = f"SELECT {_COLUMNS} FROM run WHERE agent_id = ? AND state IN ({placeholders}) ORDER BY id"
    return [_record(row) for row in connection.execute(query, (agent_id, *states))]


def count_suggested(connection: sqlite3.Connection, sweep_id: int) -> int:
    """How many of the sweep's runs the search suggested; manually added runs do not count."""
    query = "SELECT COUNT(*) FROM run WHERE sweep_id = ? AND suggested IS NOT NULL"
    return int(connection.execute(query, (sweep_id,)).fetchone()[0])


def suggestions(connection: sqlite3.Connection, sweep_id: int) -> list[dict[str, Any]]:
    """Configurations that the sweep's search suggested, oldest first."""
    query = "SELECT suggested FROM run WHERE sweep_id = ? AND suggested IS NOT NULL ORDER BY id"
    return [json.loads(row[0]) for row in connection.execute(query, (sweep_id,))]


def count_handed_out(connection: sqlite3.Connection, sweep_id: int) -> int:
    """How many of the sweep's runs were ever assigned."""
    query = "SELECT COUNT(*) FROM run WHERE sweep_id = ? AND handed_out > 0"
    return int(connection.execute(query, (sweep_id,)).fetchone()[0])


def without_cell_key(connection: sqlite3.Connection, sweep_id: int) -> list[RunConfig]:
    """The sweep's runs without a cell key, oldest first."""
    # After a grid changed these are all runs: read only the needed columns, which is much faster.
    query = "SELECT id, suggested, config FROM run WHERE sweep_id = ? AND cell_key IS NULL ORDER BY id"
    return [
        RunConfig(run_id, json.loads(suggested) if suggested else None, config)
        for run_id, suggested, config in connection.execute(query, (sweep_id,))
    ]


def set_cell_keys(connection: sqlite3.Connection, keys: Mapping[int, str]) -> None:
    """Stores the cell keys of runs, by row id."""
    connection.executemany(
        "UPDATE run SET cell_key = ? WHERE id = ?", [(key, id) for id, key in keys.items()]
    )


def clear_cell_keys(connection: sqlite3.Connection, sweep_id: int) -> None:
    """Clears all cell keys, after the sweep's space changed."""
    connection.execute("UPDATE run SET cell_key = NULL WHERE sweep_id = ?", (sweep_id,))


def silent_since(connection: sqlite3.Connection, oldest: float, newest: float) -> list[Run]:
    """Active runs whose last heartbeat is before `oldest` or after `newest`.

    A heartbeat in the future dates from before the clock was set back.
    """
    query = (
        f"SELECT {_COLUMNS} FROM run WHERE state IN ('running', 'preempting')"
        " AND heartbeat_at NOT BETWEEN ? AND ?"
    )
    return [_record(row) for row in connection.execute(query, (oldest, newest))]
