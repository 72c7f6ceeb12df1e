"""The finite values of the sweep's metric in a run's history, numbered from 1."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MetricValue:
    """One history row's value."""

    line: int
    """Number of the history line that holds it."""
    value: float


def replace_from(
    connection: sqlite3.Connection, run_id: int, line: int, values: Sequence[MetricValue]
) -> int:
    """Replaces the values of history lines from `line` on; returns the run's new number of values."""
    connection.execute("DELETE FROM metric_value WHERE run_id = ? AND line >= ?", (run_id, line))
    before = _count(connection, run_id)
    connection.executemany(
        "INSERT INTO metric_value (run_id, ordinal, line, value) VALUES (?, ?, ?, ?)",
        [(run_id, ordinal, value.line, value.value) for ordinal, value in enumerate(values, before + 1)],
    )
    connection.execute(
        "UPDATE run SET (metric_count, metric_low, metric_high) ="
        " (SELECT COUNT(*), MIN(value), MAX(value) FROM metric_value WHERE run_id = ?1),"
        " metric_last = (SELECT value FROM metric_value WHERE run_id = ?1 ORDER BY ordinal DESC LIMIT 1)"
        " WHERE id = ?1",
        (run_id,),
    )
    return before + len(values)


def _count(connection: sqlite3.Connection, run_id: int) -> int:
    query = "SELECT COALESCE(MAX(ordinal), 0) FROM metric_value WHERE run_id = ?"
    return int(connection.execute(query, (run_id,)).fetchone()[0])


def at_ordinal(connection: sqlite3.Connection, sweep_id: int, ordinal: int) -> list[tuple[int, float]]:
    """Run id and value number `ordinal` (from 1) of each of the sweep's runs that has as many values."""
    rows = connection.execute(
        "SELECT run.id, value FROM run JOIN metric_value ON metric_value.run_id = run.id"
        " WHERE run.sweep_id = ? AND metric_value.ordinal = ?",
        (sweep_id, ordinal),
    )
    return [(row[0], row[1]) for row in rows]


def history(connection: sqlite3.Connection, run_id: int) -> list[float]:
    """All of the run's values, in order."""
    rows = connection.execute("SELECT value FROM metric_value WHERE run_id = ? ORDER BY ordinal", (run_id,))
    return [row[0] for row in rows]
