"""In-memory columns of the numbers that runs have logged, updated incrementally from the database."""

import sqlite3
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kto_sweep.server.store import lines, runs
from kto_sweep.server.store.lines import Stream
from kto_sweep.sweep.view import MAX_RUN_SECONDS
from kto_sweep.text import is_number

Numbers = NDArray[np.float64]

MAX_VALUES = 8_000_000
"""Maximum numbers in the cache, 16 bytes each; least recently used runs are evicted first."""
MAX_KEYS = 2000
"""Maximum keys of a run."""
MAX_DEPTH = 5
"""Maximum nesting of logged objects; deeper values are ignored."""


@dataclass
class MetricColumn:
    """The finite values of one key."""

    rows: "array[int]" = field(default_factory=lambda: array("q"))
    """Row index of each value."""
    values: "array[float]" = field(default_factory=lambda: array("d"))


@dataclass
class StreamColumns:
    """The columns of one stream of one run."""

    next_line: int = 0
    rewrites: int = 0
    """How often lines were replaced when they were read; a higher number makes them stale."""
    steps: "array[float]" = field(default_factory=lambda: array("d"))
    """Step of each row."""
    seconds: "array[float]" = field(default_factory=lambda: array("d"))
    """Seconds of each row since the run started."""
    by_key: dict[str, MetricColumn] = field(default_factory=dict)

    def size(self) -> int:
        """How many numbers are stored."""
        return len(self.steps) + sum(len(column.values) for column in self.by_key.values())

    def append(self, new_lines: Sequence[lines.StreamLine], started_at: float) -> None:
        """Appends lines; skips those that are not JSON objects. `started_at`: seconds since the epoch."""
        for line in new_lines:
            row = lines.as_row(line.text)
            if row is not None:
                self._append_row(row, started_at)
        self.next_line = max((self.next_line, *(line.number + 1 for line in new_lines)))

    def _append_row(self, row: Mapping[str, Any], started_at: float) -> None:
        row_index = len(self.steps)
        step, runtime, timestamp = (_number(row.get(name)) for name in ("_step", "_runtime", "_timestamp"))
        self.steps.append(row_index if step is None else step)
        if runtime is None and timestamp is not None:
            runtime = timestamp - started_at
        self.seconds.append(min(max(0.0, runtime), MAX_RUN_SECONDS) if runtime is not None else row_index)
        for key, value in row.items():
            # Keys such as _step are W&B's own, not metrics.
            if not key.startswith("_"):
                self._append_value(key, value, row_index, 0)

    def _append_value(self, key: str, value: object, row_index: int, level: int) -> None:
        """Appends a finite number, recurses into an object, ignores everything else."""
        if type(value) is float or type(value) is int:
            try:
                finite = isfinite(value)
            except OverflowError:
                return
            if not finite:
                return
            column = self.by_key.get(key)
            if column is None:
                if len(self.by_key) >= MAX_KEYS:
                    return
                column = self.by_key[key] = MetricColumn()
            column.rows.append(row_index)
            column.values.append(value)
        elif isinstance(value, dict) and level < MAX_DEPTH:
            for name, item in value.items():
                self._append_value(f"{key}.{name}", item, row_index, level + 1)

    def curve(self, key: str, points: int) -> dict[str, list[float]] | None:
        """The key's curve in at most `points` points: `step`, `time` (seconds), `value`. None if unknown."""
        column = self.by_key.get(key)
        if column is None:
            return None
        values = _as_numbers(column.values)
        chosen = downsample(values, points)
        rows = np.array(column.rows, dtype=np.int64)[chosen]
        return {
            "step": _as_numbers(self.steps)[rows].tolist(),
            "time": np.round(_as_numbers(self.seconds)[rows], 1).tolist(),
            "value": round_significant(values[chosen]).tolist(),
        }


def _as_numbers(values: "array[float]") -> Numbers:
    # A copy: an array cannot grow while numpy holds a view of its buffer.
    return np.array(values, dtype=np.float64)


def _number(value: object) -> float | None:
    return float(value) if is_number(value) else None


HistoryReader = Callable[[sqlite3.Connection, int, float], StreamColumns | None]
"""From a connection, the run's row and its start, in seconds since the epoch."""


class ColumnCache:
    """LRU cache of the columns of viewed runs. Thread-safe."""

    def __init__(self, read_history: HistoryReader = lambda connection, run_id, started_at: None) -> None:
        """`read_history`: the columns of a long history; None for a short one, of which all rows are read."""
        self._read_history = read_history
        self._lock = threading.Lock()
        self._columns: OrderedDict[tuple[int, Stream], StreamColumns] = OrderedDict()
        self._total = 0

    def keys(
        self, connection: sqlite3.Connection, run_id: int, started_at: float, stream: Stream = Stream.HISTORY
    ) -> list[str]:
        """Sorted keys with numbers in the stream. `started_at`: the run's start, seconds since the epoch."""
        with self._lock:
            return sorted(self._updated(connection, run_id, started_at, stream).by_key)

    def curves(
        self,
        connection: sqlite3.Connection,
        run_id: int,
        started_at: float,
        keys: list[str],
        points: int,
        stream: Stream = Stream.HISTORY,
    ) -> dict[str, dict[str, list[float]]]:
        """The curves of the keys that the run has logged."""
        with self._lock:
            columns = self._updated(connection, run_id, started_at, stream)
            curves = {key: columns.curve(key, points) for key in keys}
        return {key: curve for key, curve in curves.items() if curve is not None}

    def _updated(
        self, connection: sqlite3.Connection, run_id: int, started_at: float, stream: Stream
    ) -> StreamColumns:
        """The columns, updated with all lines logged so far."""
        columns = self._columns.pop((run_id, stream), None) or StreamColumns()
        self._total -= columns.size()
        rewrites = runs.rewrites(connection, run_id, stream)
        if rewrites != columns.rewrites:
            columns = StreamColumns(rewrites=rewrites)
        if columns.next_line == 0 and stream is Stream.HISTORY:
            columns = self._read_history(connection, run_id, started_at) or columns
            columns.rewrites = rewrites
        columns.append(_new_lines(connection, run_id, stream, columns.next_line), started_at)
        self._columns[(run_id, stream)] = columns
        self._total += columns.size()
        while self._total > MAX_VALUES and len(self._columns) > 1:
            _, oldest = self._columns.popitem(last=False)
            self._total -= oldest.size()
        return columns


def _new_lines(
    connection: sqlite3.Connection, run_id: int, stream: Stream, start: int
) -> list[lines.StreamLine]:
    """The lines from number `start` on, rows of the history in the order of their steps."""
    if stream is Stream.HISTORY and start == 0:
        return list(lines.history_lines(connection, run_id))
    return lines.after(connection, run_id, stream, start - 1, -1)


def downsample(values: Numbers, points: int) -> NDArray[np.intp]:
    """Indices of at most `points` values (at least 4) that represent the curve, ascending.

    Min-max downsampling: keeps the first and last value, and the minimum and maximum of each bucket between
    them, so that no spike is lost. `values` must be finite.
    """
    count = len(values)
    if count <= max(points, 4):
        return np.arange(count)
    buckets = (max(points, 4) - 2) // 2
    length = -(-(count - 2) // buckets)
    # Pad the last bucket with the value before the last point, which belongs to it anyway.
    padded = np.full(buckets * length, values[-2])
    padded[: count - 2] = values[1:-1]
    bucketed = padded.reshape(buckets, length)
    starts = np.arange(buckets) * length + 1
    chosen = np.concatenate(
        [[0], starts + bucketed.argmin(axis=1), starts + bucketed.argmax(axis=1), [count - 1]]
    )
    return np.unique(np.minimum(chosen, count - 1))


def round_significant(values: Numbers, digits: int = 6) -> Numbers:
    """The finite values rounded to `digits` significant digits, enough for a plot."""
    magnitude = np.floor(np.log10(np.abs(values), where=values != 0, out=np.zeros_like(values)))
    # Beyond these exponents the factor would overflow; leave such values unrounded.
    usable = np.abs(magnitude) < 290
    factor = 10.0 ** np.where(usable, digits - 1 - magnitude, 0)
    return np.where(usable, np.round(values * factor) / factor, values)
