"""Records of exported history: which lines of which run each file has."""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from kto_sweep.server.store.runs import Run


@dataclass(frozen=True)
class Part:
    """One file with the history lines `start` to `end` - 1 of a run, in the order of their steps."""

    run_id: int
    number: int
    """Its position among the run's files, from 0."""
    start: int
    end: int
    rewrites: int
    """The run's `history_rewrites` when it was written."""


def of_run(connection: sqlite3.Connection, run: Run) -> list[Part]:
    """The files that were exported under the run's name, also of deleted runs that had it."""
    rows = connection.execute(
        "SELECT run_id, number, start_line, end_line, rewrites FROM history_export"
        " WHERE project_id = ? AND run_name = ? ORDER BY number",
        (run.project_id, run.name),
    )
    return [Part(*row) for row in rows]


def add(connection: sqlite3.Connection, run: Run, part: Part) -> None:
    """Records a written file."""
    connection.execute(
        "INSERT OR REPLACE INTO history_export"
        " (project_id, run_name, run_id, number, start_line, end_line, rewrites)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (run.project_id, run.name, part.run_id, part.number, part.start, part.end, part.rewrites),
    )


def rows(connection: sqlite3.Connection, part: Part) -> Iterable[tuple[int, str]]:
    """Step and text of the part's rows, in the order of their steps."""
    found = connection.execute(
        "SELECT step, text FROM line WHERE run_id = ? AND stream = 'history' AND step IS NOT NULL"
        " AND number >= ? AND number < ? ORDER BY step, number",
        (part.run_id, part.start, part.end),
    )
    return ((row[0], row[1]) for row in found)
