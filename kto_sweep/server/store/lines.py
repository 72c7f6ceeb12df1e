"""The lines of a run's streams: history, system metrics, console output. Lines are numbered from 0."""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MAX_STEP = 2**62
"""Larger steps would not fit SQLite's integers; the line number is used instead."""


class Stream(StrEnum):
    """The three streams of a run."""

    HISTORY = "history"
    EVENTS = "events"
    """System metrics."""
    OUTPUT = "output"
    """Console lines."""


@dataclass(frozen=True)
class StreamLine:
    """One line with its number, counted from 0."""

    number: int
    text: str


def write(
    connection: sqlite3.Connection, run_id: int, stream: Stream, offset: int, texts: Sequence[str]
) -> None:
    """Writes `texts` from line `offset`, replacing existing lines, so that a repeated request is harmless."""
    connection.executemany(
        "INSERT INTO line (run_id, stream, number, step, text) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET step = excluded.step, text = excluded.text",
        [
            (run_id, stream, number, _step(text, number) if stream is Stream.HISTORY else None, text)
            for number, text in enumerate(texts, offset)
        ],
    )


def _step(text: str, number: int) -> int | None:
    """The row's `_step`, else its line number; None if it is not a JSON object (readers skip it)."""
    row = as_row(text)
    if row is None:
        return None
    step = row.get("_step", number)
    return step if isinstance(step, int) and abs(step) < MAX_STEP else number


def as_row(text: str) -> dict[str, Any] | None:
    """The JSON object in `text`, with NaN and Infinity allowed; None if it is not an object."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def console_parts(text: str) -> tuple[str | None, bool, str]:
    """Timestamp, whether the line is from stderr, and text of a console line.

    Clients send `TIMESTAMP text`, and `ERROR TIMESTAMP text` for stderr; a line without a timestamp is all
    text.
    """
    is_error = text.startswith("ERROR ")
    timestamp, _, rest = text.removeprefix("ERROR ").partition(" ")
    has_timestamp = len(timestamp) >= 19 and timestamp[4:5] == "-" and timestamp[10:11] == "T"
    return (timestamp, is_error, rest) if has_timestamp else (None, is_error, text)


def count(connection: sqlite3.Connection, run_id: int, stream: Stream) -> int:
    """The number of the stream's next line."""
    query = "SELECT COALESCE(MAX(number) + 1, 0) FROM line WHERE run_id = ? AND stream = ?"
    return int(connection.execute(query, (run_id, stream)).fetchone()[0])


def last_step(connection: sqlite3.Connection, run_id: int) -> int:
    """The highest step in the history; -1 when it is empty."""
    query = "SELECT COALESCE(MAX(step), -1) FROM line WHERE run_id = ? AND stream = 'history'"
    return int(connection.execute(query, (run_id,)).fetchone()[0])


def last(connection: sqlite3.Connection, run_id: int, stream: Stream, number: int = 1) -> list[StreamLine]:
    """The last `number` lines, in order."""
    query = "SELECT number, text FROM line WHERE run_id = ? AND stream = ? ORDER BY number DESC LIMIT ?"
    return [
        StreamLine(*row) for row in reversed(connection.execute(query, (run_id, stream, number)).fetchall())
    ]


def after(
    connection: sqlite3.Connection, run_id: int, stream: Stream, number: int, first: int
) -> list[StreamLine]:
    """Up to `first` lines with numbers above `number`."""
    query = (
        "SELECT number, text FROM line WHERE run_id = ? AND stream = ? AND number > ? ORDER BY number LIMIT ?"
    )
    return [StreamLine(*row) for row in connection.execute(query, (run_id, stream, number, first))]


def history(
    connection: sqlite3.Connection,
    run_id: int,
    lowest: int | None = None,
    below: int | None = None,
) -> Iterable[str]:
    """The valid history rows in order, with `lowest` <= step < `below`."""
    conditions, bounds = "", []
    if lowest is not None:
        conditions += " AND step >= ?"
        bounds.append(max(-MAX_STEP, min(lowest, MAX_STEP)))
    if below is not None:
        conditions += " AND step < ?"
        bounds.append(max(-MAX_STEP, min(below, MAX_STEP)))
    rows = connection.execute(
        "SELECT text FROM line WHERE run_id = ? AND stream = 'history' AND step IS NOT NULL"
        f"{conditions} ORDER BY {'step, ' if bounds else ''}number",
        (run_id, *bounds),
    )
    return (row[0] for row in rows)


def at(connection: sqlite3.Connection, run_id: int, stream: Stream, number: int) -> str | None:
    """The text of line `number`."""
    query = "SELECT text FROM line WHERE run_id = ? AND stream = ? AND number = ?"
    row = connection.execute(query, (run_id, stream, number)).fetchone()
    return None if row is None else str(row[0])


def clear(connection: sqlite3.Connection, run_id: int, stream: Stream) -> None:
    """Deletes every line of the stream."""
    connection.execute("DELETE FROM line WHERE run_id = ? AND stream = ?", (run_id, stream))
