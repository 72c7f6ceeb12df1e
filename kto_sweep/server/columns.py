"""What runs have logged, as columns of numbers in memory: read once, then only what is new."""

import hashlib
import sqlite3
import threading
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from kto_sweep.server.downsample import Numbers, downsample, round_significant
from kto_sweep.server.store import lines
from kto_sweep.server.store.lines import Stream
from kto_sweep.text import is_number

MAX_VALUES = 8_000_000
"""Numbers kept in memory at most, 16 bytes each; the runs longest not looked at go first."""
MAX_KEYS = 2000
"""Keys of one run at most."""
MAX_DEPTH = 5
"""Levels of nested objects that are read."""
MAX_RUN_SECONDS = 1e9
"""Seconds, 32 years: no age of a run beyond this is believed."""


@dataclass
class Column:
    """The finite values of one key."""

    rows: "array[int]" = field(default_factory=lambda: array("q"))
    """Positions in the columns of all rows."""
    values: "array[float]" = field(default_factory=lambda: array("d"))


@dataclass
class Columns:
    """One stream of one run."""

    next_line: int = 0
    last_digest: bytes = b""
    """Of the last line read: when it has changed, the run was started anew."""
    steps: "array[float]" = field(default_factory=lambda: array("d"))
    """Of every row."""
    seconds: "array[float]" = field(default_factory=lambda: array("d"))
    """Of every row, since the run began."""
    by_key: dict[str, Column] = field(default_factory=dict)

    def size(self) -> int:
        """Numbers kept."""
        return len(self.steps) + sum(len(column.values) for column in self.by_key.values())

    def take(self, found: Sequence[lines.Line], began: float) -> None:
        """Add lines; what is no JSON object is skipped. `began` is the run's first second."""
        for line in found:
            row = lines.as_row(line.text)
            if row is not None:
                self._take_row(row, began)
        if found:
            self.next_line = found[-1].number + 1
            self.last_digest = _digest(found[-1].text)

    def _take_row(self, row: Mapping[str, Any], began: float) -> None:
        place = len(self.steps)
        step, runtime, stamp = (_number(row.get(name)) for name in ("_step", "_runtime", "_timestamp"))
        self.steps.append(place if step is None else step)
        if runtime is None and stamp is not None:
            runtime = stamp - began
        self.seconds.append(min(max(0.0, runtime), MAX_RUN_SECONDS) if runtime is not None else place)
        for key, value in row.items():
            # W&B's own entries are no metrics.
            if not key.startswith("_"):
                self._take_value(key, value, place, 0)

    def _take_value(self, key: str, value: object, place: int, level: int) -> None:
        """Add a finite number; go into an object, pass over all else."""
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
                column = self.by_key[key] = Column()
            column.rows.append(place)
            column.values.append(value)
        elif isinstance(value, dict) and level < MAX_DEPTH:
            for name, item in value.items():
                self._take_value(f"{key}.{name}", item, place, level + 1)

    def curve(self, key: str, points: int) -> dict[str, list[float]] | None:
        """The key's curve in at most so many points: `step`, `time` in seconds, `value`; None without it."""
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
    # A copy: the array could not grow while numpy looks at its memory.
    return np.array(values, dtype=np.float64)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest()


def _number(value: object) -> float | None:
    return float(value) if is_number(value) else None


class ColumnCache:
    """The columns of the runs that somebody looks at. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[int, Stream], Columns] = OrderedDict()
        self._total = 0

    def keys(
        self, connection: sqlite3.Connection, run_id: int, began: float, stream: Stream = Stream.HISTORY
    ) -> list[str]:
        """The names under which the stream has numbers; `began` is the run's first second."""
        with self._lock:
            return sorted(self._fresh(connection, run_id, began, stream).by_key)

    def curves(
        self,
        connection: sqlite3.Connection,
        run_id: int,
        began: float,
        keys: list[str],
        points: int,
        stream: Stream = Stream.HISTORY,
    ) -> dict[str, dict[str, list[float]]]:
        """The curves of those of the keys that the run has logged."""
        with self._lock:
            columns = self._fresh(connection, run_id, began, stream)
            found = {key: columns.curve(key, points) for key in keys}
        return {key: curve for key, curve in found.items() if curve is not None}

    def _fresh(self, connection: sqlite3.Connection, run_id: int, began: float, stream: Stream) -> Columns:
        """The columns with everything that has been logged up to now."""
        columns = self._known.pop((run_id, stream), None) or Columns()
        self._total -= columns.size()
        if columns.next_line and not _still_true(connection, run_id, stream, columns):
            columns = Columns()
        columns.take(lines.after(connection, run_id, stream, columns.next_line - 1, -1), began)
        self._known[(run_id, stream)] = columns
        self._total += columns.size()
        while self._total > MAX_VALUES and len(self._known) > 1:
            _, oldest = self._known.popitem(last=False)
            self._total -= oldest.size()
        return columns


def _still_true(connection: sqlite3.Connection, run_id: int, stream: Stream, columns: Columns) -> bool:
    """Whether the last line read still stands where it stood; every line carries its time, so it tells."""
    text = lines.at(connection, run_id, stream, columns.next_line - 1)
    return text is not None and _digest(text) == columns.last_digest
