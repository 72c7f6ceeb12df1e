"""Sweeps and their agents."""

import sqlite3
from dataclasses import dataclass, fields
from typing import Any

from kto_sweep.server.states import SweepState


@dataclass(frozen=True)
class Sweep:
    """A row of the sweep table. Times are in seconds since the epoch."""

    id: int
    project_id: int
    name: str
    """The sweep id of clients."""
    state: SweepState
    display_name: str | None
    description: str | None
    controller: str | None
    scheduler: str | None
    controller_run_name: str | None
    """The run of a client-side scheduler, if the sweep has one."""
    prior_runs: str | None
    """JSON filter of the prior runs."""
    exhausted: bool
    """The search has no more trials: grid done, cap or target reached."""
    grid_cursor: int
    """Number of leading grid cells that have all been tried."""
    created_at: float
    updated_at: float
    heartbeat_at: float | None
    config: str
    """YAML text as sent by the client."""


@dataclass(frozen=True)
class Agent:
    """One registered agent."""

    id: int
    sweep_id: int
    name: str
    host: str
    created_at: float
    heartbeat_at: float


_COLUMNS = ", ".join(f"sweep.{field.name}" for field in fields(Sweep))
_AGENT_COLUMNS = ", ".join(f"agent.{field.name}" for field in fields(Agent))


def _record(row: sqlite3.Row) -> Sweep:
    values = dict(row)
    values["state"] = SweepState(values["state"])
    values["exhausted"] = bool(values["exhausted"])
    return Sweep(**values)


def get(connection: sqlite3.Connection, sweep_id: int) -> Sweep | None:
    """The sweep of row `sweep_id`."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM sweep WHERE id = ?", (sweep_id,)).fetchone()
    return _record(row) if row else None


def find(connection: sqlite3.Connection, project_id: int, name: str) -> Sweep | None:
    """The sweep with this sweep id."""
    query = f"SELECT {_COLUMNS} FROM sweep WHERE project_id = ? AND name = ?"
    row = connection.execute(query, (project_id, name)).fetchone()
    return _record(row) if row else None


def page(connection: sqlite3.Connection, project_id: int | None, first: int, offset: int = 0) -> list[Sweep]:
    """Sweeps of one project (of all when None), newest first."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM sweep WHERE ?1 IS NULL OR project_id = ?1"
        " ORDER BY id DESC LIMIT ?2 OFFSET ?3",
        (project_id, first, offset),
    )
    return [_record(row) for row in rows]


def count(connection: sqlite3.Connection, project_id: int) -> int:
    """How many sweeps the project has."""
    query = "SELECT COUNT(*) FROM sweep WHERE project_id = ?"
    return int(connection.execute(query, (project_id,)).fetchone()[0])


def open_sweeps(connection: sqlite3.Connection) -> list[Sweep]:
    """Running and paused sweeps."""
    query = f"SELECT {_COLUMNS} FROM sweep WHERE state IN ('RUNNING', 'PAUSED') ORDER BY id"
    return [_record(row) for row in connection.execute(query)]


def insert(connection: sqlite3.Connection, *, project_id: int, name: str, config: str, now: float) -> Sweep:
    """Creates a pending sweep."""
    cursor = connection.execute(
        "INSERT INTO sweep (project_id, name, state, config, created_at, updated_at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (project_id, name, SweepState.PENDING, config, now, now),
    )
    created = get(connection, int(cursor.lastrowid or 0))
    assert created is not None
    return created


def update(connection: sqlite3.Connection, sweep_id: int, **values: Any) -> None:
    """Updates the given columns."""
    if values:
        assignments = ", ".join(f"{column} = ?" for column in values)
        connection.execute(f"UPDATE sweep SET {assignments} WHERE id = ?", (*values.values(), sweep_id))


def has_cell(connection: sqlite3.Connection, sweep_id: int, key: str) -> bool:
    """Whether a run of the sweep has this cell key."""
    query = "SELECT 1 FROM run WHERE sweep_id = ? AND cell_key = ? LIMIT 1"
    return connection.execute(query, (sweep_id, key)).fetchone() is not None


def best_metric(connection: sqlite3.Connection, sweep_id: int, *, maximize: bool) -> float | None:
    """The best logged value of the metric in the sweep."""
    column = "MAX(metric_high)" if maximize else "MIN(metric_low)"
    row = connection.execute(f"SELECT {column} FROM run WHERE sweep_id = ?", (sweep_id,)).fetchone()
    return None if row[0] is None else float(row[0])


def insert_agent(connection: sqlite3.Connection, *, sweep_id: int, name: str, host: str, now: float) -> Agent:
    """Creates an agent."""
    cursor = connection.execute(
        "INSERT INTO agent (sweep_id, name, host, created_at, heartbeat_at) VALUES (?, ?, ?, ?, ?)",
        (sweep_id, name, host, now, now),
    )
    created = get_agent(connection, int(cursor.lastrowid or 0))
    assert created is not None
    return created


def get_agent(connection: sqlite3.Connection, agent_id: int) -> Agent | None:
    """The agent of row `agent_id`."""
    row = connection.execute(f"SELECT {_AGENT_COLUMNS} FROM agent WHERE id = ?", (agent_id,)).fetchone()
    return Agent(**row) if row else None


def find_agent(connection: sqlite3.Connection, sweep_id: int, name: str) -> Agent | None:
    """The sweep's agent of that name."""
    query = f"SELECT {_AGENT_COLUMNS} FROM agent WHERE sweep_id = ? AND name = ?"
    row = connection.execute(query, (sweep_id, name)).fetchone()
    return Agent(**row) if row else None


def agents(connection: sqlite3.Connection, sweep_id: int) -> list[Agent]:
    """The sweep's agents, oldest first."""
    query = f"SELECT {_AGENT_COLUMNS} FROM agent WHERE sweep_id = ? ORDER BY id"
    return [Agent(**row) for row in connection.execute(query, (sweep_id,))]


def touch_agent(connection: sqlite3.Connection, agent: Agent, now: float) -> None:
    """Updates the heartbeat of the agent and its sweep."""
    connection.execute("UPDATE agent SET heartbeat_at = ? WHERE id = ?", (now, agent.id))
    connection.execute("UPDATE sweep SET heartbeat_at = ? WHERE id = ?", (now, agent.sweep_id))
