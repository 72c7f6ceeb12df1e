"""The lines of a run's streams: history, system metrics, console output. Lines are numbered from 0."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
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


@dataclass(frozen=True)
class StreamChunk:
    """Consecutive lines; the first has the number `offset`."""

    offset: int
    texts: Sequence[str]


def write(
    connection: sqlite3.Connection, run_id: int, stream: Stream, offset: int, texts: Sequence[str]
) -> bool:
    """Writes `texts` from line `offset`; returns whether that changed existing lines.

    A repeated request changes nothing.
    """
    query = "SELECT number, text FROM line WHERE run_id = ? AND stream = ? AND number >= ? AND number < ?"
    old = connection.execute(query, (run_id, stream, offset, offset + len(texts))).fetchall()
    connection.executemany(
        "INSERT INTO line (run_id, stream, number, step, text) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET step = excluded.step, text = excluded.text",
        [
            (run_id, stream, number, _step(text, number) if stream is Stream.HISTORY else None, text)
            for number, text in enumerate(texts, offset)
        ],
    )
    return any(texts[number - offset] != text for number, text in old)


def append(
    connection: sqlite3.Connection,
    run_id: int,
    stream: Stream,
    writer: str,
    offset: int,
    texts: Sequence[str],
) -> StreamChunk:
    """Appends the lines of one of several processes that write a run; returns the new lines.

    `offset` counts the lines of this `writer`. A repeated request changes nothing, except that console lines
    are rewritten in place. History rows get the next steps: the processes do not know each other's.
    """
    query = "SELECT writer_line, number FROM line WHERE run_id = ? AND stream = ? AND writer = ?"
    bounds = (run_id, stream, writer, offset, offset + len(texts))
    known = dict(connection.execute(f"{query} AND writer_line >= ? AND writer_line < ?", bounds).fetchall())
    first, step = count(connection, run_id, stream), last_step(connection, run_id) + 1
    new: list[str] = []
    for writer_line, text in enumerate(texts, offset):
        if writer_line not in known:
            row = as_row(text) if stream is Stream.HISTORY else None
            new.append(text if row is None else json.dumps({**row, "_step": step + len(new)}))
            number = first + len(new) - 1
            own_step = None if row is None else step + len(new) - 1
            connection.execute(
                "INSERT INTO line (run_id, stream, number, step, text, writer, writer_line)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (run_id, stream, number, own_step, new[-1], writer, writer_line),
            )
        elif stream is Stream.OUTPUT:
            connection.execute(
                "UPDATE line SET text = ? WHERE run_id = ? AND stream = ? AND number = ?",
                (text, run_id, stream, known[writer_line]),
            )
    return StreamChunk(first, new)


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


def blocks(
    connection: sqlite3.Connection, run_id: int, stream: Stream, size: int, within: range
) -> Iterator[int]:
    """The numbers, of those `within`, of the blocks of `size` lines in which the stream has lines, rising."""
    query = "SELECT number FROM line WHERE run_id = ? AND stream = ? AND number >= ? ORDER BY number LIMIT 1"
    number = within.start
    while number < within.stop:
        row = connection.execute(query, (run_id, stream, number * size)).fetchone()
        if row is None or row[0] // size >= within.stop:
            return
        number = row[0] // size
        yield number
        number += 1


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
    """The valid history rows in the order of their steps, with `lowest` <= step < `below`."""
    return (line.text for line in history_lines(connection, run_id, lowest, below))


def history_lines(
    connection: sqlite3.Connection,
    run_id: int,
    lowest: int | None = None,
    below: int | None = None,
) -> Iterable[StreamLine]:
    """Like `history`, with the lines' numbers."""
    conditions, bounds = "", []
    if lowest is not None:
        conditions += " AND step >= ?"
        bounds.append(max(-MAX_STEP, min(lowest, MAX_STEP)))
    if below is not None:
        conditions += " AND step < ?"
        bounds.append(max(-MAX_STEP, min(below, MAX_STEP)))
    rows = connection.execute(
        "SELECT number, text FROM line WHERE run_id = ? AND stream = 'history' AND step IS NOT NULL"
        f"{conditions} ORDER BY step, number",
        (run_id, *bounds),
    )
    return (StreamLine(*row) for row in rows)


def numbered(connection: sqlite3.Connection, run_id: int, numbers: Sequence[int]) -> list[str]:
    """The valid history rows with these numbers, in the order of their steps."""
    rows = connection.execute(
        "SELECT text FROM line WHERE run_id = ? AND stream = 'history' AND step IS NOT NULL"
        " AND number IN (SELECT value FROM json_each(?)) ORDER BY step, number",
        (run_id, json.dumps(list(numbers))),
    )
    return [row[0] for row in rows]


def replace_steps(connection: sqlite3.Connection, run_id: int, below: int, texts: Sequence[str]) -> int:
    """Deletes the history lines with numbers under `below` that have the steps of these new rows.

    Returns the number under which such lines are left with later steps: `below`, or 0 if none is left.
    """
    steps = [step for number, text in enumerate(texts) if (step := _step(text, number)) is not None]
    old = "run_id = ? AND stream = 'history' AND number < ?"
    connection.executemany(
        f"DELETE FROM line WHERE {old} AND step = ?", [(run_id, below, step) for step in steps]
    )
    highest = connection.execute(f"SELECT MAX(step) FROM line WHERE {old}", (run_id, below)).fetchone()[0]
    return 0 if highest is None or (steps and highest < max(steps)) else below


def cut(connection: sqlite3.Connection, run_id: int, step: int) -> None:
    """Deletes the history after `step`."""
    connection.execute(
        "DELETE FROM line WHERE run_id = ? AND stream = 'history' AND (step IS NULL OR step > ?)",
        (run_id, step),
    )


def copy_history(connection: sqlite3.Connection, source_id: int, run_id: int, step: int) -> None:
    """Copies the source's history up to `step` to a run that has none."""
    connection.execute(
        "INSERT INTO line (run_id, stream, number, step, text)"
        " SELECT ?, stream, ROW_NUMBER() OVER (ORDER BY step, number) - 1, step, text FROM line"
        " WHERE run_id = ? AND stream = 'history' AND step <= ?",
        (run_id, source_id, step),
    )


def clear(connection: sqlite3.Connection, run_id: int, stream: Stream) -> None:
    """Deletes every line of the stream."""
    connection.execute("DELETE FROM line WHERE run_id = ? AND stream = ?", (run_id, stream))
