"""Extracts of long histories, kept block by block while rows arrive: a page never reads a million rows.

The extract of a block has of each key the extremes of its stretches, so that no spike is lost, and all values
of a key that is logged seldom, as those of evaluations are.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from kto_sweep.server.columns import MetricColumn, StreamColumns, downsample
from kto_sweep.server.store import history_extracts, lines, runs
from kto_sweep.server.store.lines import Stream
from kto_sweep.server.store.runs import Run

BLOCK = 2_000
"""Lines of a block."""
POINTS = 16
"""Maximum points of a key in a block."""
LONG = 20_000
"""Histories with more lines are read from their extracts."""
MAX_BLOCKS = 4
"""Blocks extracted per message, each in a hundredth of a second, while other writes wait."""


@dataclass(frozen=True)
class _Extract:
    """What is kept of one key in a block: parallel lists."""

    count: int
    """How many values the block has."""
    numbers: Sequence[int]
    steps: Sequence[float]
    seconds: Sequence[float]
    values: Sequence[float]


_Block = dict[str, _Extract]


def update(connection: sqlite3.Connection, run: Run, limit: int = MAX_BLOCKS) -> None:
    """Stores the extracts of complete blocks that have none; not while a new process replaces old rows."""
    end = lines.count(connection, run.id, Stream.HISTORY) // BLOCK
    if end == 0 or run.overwrite_below:
        return
    rewrites = runs.rewrites(connection, run.id, Stream.HISTORY)
    start = history_extracts.next_block(connection, run.id, rewrites)
    for number in islice(lines.blocks(connection, run.id, Stream.HISTORY, BLOCK, range(start, end)), limit):
        block = _extract(connection, run.id, run.created_at, number)
        text = json.dumps({key: list(vars(part).values()) for key, part in block.items()})
        history_extracts.write(connection, run.id, number, rewrites, text)


def _extract(connection: sqlite3.Connection, run_id: int, started_at: float, number: int) -> _Block:
    columns, first = StreamColumns(), number * BLOCK
    found = lines.after(connection, run_id, Stream.HISTORY, first - 1, BLOCK)
    new_lines = [
        line for line in found if line.number < first + BLOCK and lines.as_row(line.text) is not None
    ]
    columns.append(new_lines, started_at)
    block = {}
    for key, column in columns.by_key.items():
        chosen = downsample(np.array(column.values), POINTS)
        rows = np.array(column.rows, dtype=np.int64)[chosen].tolist()
        block[key] = _Extract(
            len(column.values),
            [new_lines[row].number for row in rows],
            [columns.steps[row] for row in rows],
            [columns.seconds[row] for row in rows],
            [column.values[at] for at in chosen],
        )
    return block


def _complete_blocks(connection: sqlite3.Connection, run_id: int) -> list[int]:
    """The numbers of the blocks with lines, without the last one, which may still grow.

    A client numbers its lines as it likes: between two of them there may be a billion that do not exist.
    """
    end = lines.count(connection, run_id, Stream.HISTORY) // BLOCK
    return list(lines.blocks(connection, run_id, Stream.HISTORY, BLOCK, range(end)))


def _blocks(connection: sqlite3.Connection, run_id: int, started_at: float) -> Iterator[_Block]:
    """The extracts of all complete blocks; reads the rows of a block without one."""
    rewrites = runs.rewrites(connection, run_id, Stream.HISTORY)
    stored = history_extracts.read(connection, run_id, rewrites)
    for number in _complete_blocks(connection, run_id):
        if text := stored.get(number):
            yield {key: _Extract(*parts) for key, parts in json.loads(text).items()}
        else:
            yield _extract(connection, run_id, started_at, number)


def long_columns(connection: sqlite3.Connection, run_id: int, started_at: float) -> StreamColumns | None:
    """The columns of a long history from its extracts, up to its last complete block; None: it is short."""
    if not is_long(connection, run_id):
        return None
    points: dict[str, list[tuple[float, float, float]]] = {}
    for block in _blocks(connection, run_id, started_at):
        for key, part in block.items():
            points.setdefault(key, []).extend(zip(part.steps, part.seconds, part.values, strict=True))
    end = lines.count(connection, run_id, Stream.HISTORY) // BLOCK
    columns = StreamColumns(next_line=end * BLOCK)
    for key, triples in points.items():
        triples.sort(key=lambda triple: triple[0])  # a resumed run logged some steps later
        column = columns.by_key[key] = MetricColumn()
        for step, seconds, value in triples:
            column.rows.append(len(columns.steps))
            column.values.append(value)
            columns.steps.append(step)
            columns.seconds.append(seconds)
    return columns


def is_long(connection: sqlite3.Connection, run_id: int) -> bool:
    """Whether the history is read from its extracts."""
    return lines.count(connection, run_id, Stream.HISTORY) > LONG


def sampled_lines(
    connection: sqlite3.Connection, run_id: int, keys: Sequence[str] | None, samples: int
) -> list[str]:
    """Rows of a long history that represent it, in the order of their steps.

    They are evenly spaced; or those that have a key that few rows have.
    """
    total = lines.count(connection, run_id, Stream.HISTORY)
    logged: dict[str, list[_Extract]] = {key: [] for key in keys or () if not key.startswith("_")}
    complete = total // BLOCK * BLOCK
    if logged:
        for block in _blocks(connection, run_id, 0.0):
            for key, parts in logged.items():
                if key in block:
                    parts.append(block[key])
    counts = {key: sum(part.count for part in parts) for key, parts in logged.items()}
    rarest = min(counts, key=lambda key: counts[key], default=None)
    blocks = _complete_blocks(connection, run_id)
    places = len(blocks) * BLOCK + total - complete
    evenly: list[int] = np.linspace(0, places - 1, min(places, 2 * samples)).astype(int).tolist()
    starts = [*(number * BLOCK for number in blocks), complete]
    numbers = [starts[place // BLOCK] + place % BLOCK for place in evenly]
    if rarest is not None and counts[rarest] < places / 2:
        known = [number for part in logged[rarest] for number in part.numbers]
        numbers = [*known, *range(complete, total)]
    return lines.numbered(connection, run_id, numbers)
