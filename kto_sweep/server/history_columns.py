"""The history of a run as the columns of a Parquet file, streamed in row groups.

Nested objects become dotted keys, as on W&B. A column has one type: a key whose values have several, or are
lists or objects of wandb's own (images, tables, histograms), becomes text, with JSON for all but texts.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Flag, auto
from pathlib import Path
from typing import Any

STEP = "_step"
MAX_COLUMNS = 10_000
"""A history with more keys is not exported: a file has metadata for each column of each row group."""
GROUP_CELLS = 1_000_000
"""Maximum values of a row group, which is in memory while it is written."""
GROUP_ROWS = 20_000
GROUP_BYTES = 16 * 2**20
"""Maximum characters of the texts in a row group."""

Row = tuple[int, Mapping[str, Any]]
"""A step and the values that were logged at it."""


class Kind(Flag):
    """The kinds of values that a column has."""

    NOTHING = 0
    BOOL = auto()
    INT = auto()
    FLOAT = auto()
    TEXT = auto()
    NUMBERS = auto()
    """Lists of numbers."""
    JSON = auto()
    """Other lists, and objects of wandb's own."""


class TooManyColumns(Exception):
    """The history has more than MAX_COLUMNS keys."""


def flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with dotted keys for nested objects."""
    if not any(isinstance(value, dict) for value in row.values()):
        return dict(row)
    flat: dict[str, Any] = {}
    waiting = list(row.items())[::-1]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict) and value and "_type" not in value:
            waiting += [(f"{key}.{name}", item) for name, item in list(value.items())[::-1]]
        else:
            flat[key] = value
    return flat


def column_kinds(rows: Iterable[Row]) -> dict[str, Kind]:
    """The kinds of values of each key but the step, in the order in which they appear.

    Raises TooManyColumns.
    """
    kinds: dict[str, Kind] = {}
    for _, row in rows:
        for key, value in flatten(row).items():
            kinds[key] = kinds.get(key, Kind.NOTHING) | _kind(value)
        if len(kinds) > MAX_COLUMNS:
            raise TooManyColumns
    kinds.pop(STEP, None)
    return kinds


_KIND_OF_TYPE = {type(None): Kind.NOTHING, bool: Kind.BOOL, float: Kind.FLOAT, str: Kind.TEXT}


def _kind(value: object) -> Kind:
    if isinstance(value, int) and not isinstance(value, bool):
        return Kind.INT if abs(value) < 2**63 else Kind.FLOAT
    if isinstance(value, list) and value and all(type(item) in (int, float) for item in value):
        return Kind.NUMBERS
    return _KIND_OF_TYPE.get(type(value), Kind.JSON)


def write_parquet(path: Path, kinds: Mapping[str, Kind], rows: Iterable[Row]) -> None:
    """Writes the rows, which must be in the order of their steps. Raises OSError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        Kind.BOOL: pa.bool_(),
        Kind.INT: pa.int64(),
        Kind.FLOAT: pa.float64(),
        Kind.INT | Kind.FLOAT: pa.float64(),
        Kind.NUMBERS: pa.list_(pa.float64()),
    }
    fields = [pa.field(STEP, pa.int64())]
    fields += [pa.field(key, types.get(kind, pa.string())) for key, kind in kinds.items()]
    schema = pa.schema(fields)
    # Dictionaries of numbers that seldom repeat take most of the time, and what the file says of each column
    # of each row group is in memory until its end.
    repeating = [field.name for field in fields if field.type in (pa.string(), pa.bool_())]
    options = {"use_dictionary": repeating or False, "write_statistics": [STEP]}
    with pq.ParquetWriter(path, schema, **options) as writer:
        for columns in _groups(rows, (STEP, *kinds)):
            arrays = [
                pa.array(_cells(values, kinds.get(field.name, Kind.INT)), field.type)
                for field, values in zip(fields, columns, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema), row_group_size=len(columns[0]))


def _groups(rows: Iterable[Row], keys: Sequence[str]) -> Iterator[list[list[Any]]]:
    """The columns of as many rows as fit into memory at a time."""
    most = max(1, min(GROUP_ROWS, GROUP_CELLS // len(keys)))
    columns: list[list[Any]] = [[] for _ in keys]
    size = 0
    for step, row in rows:
        flat = {**flatten(row), STEP: step}
        for key, column in zip(keys, columns, strict=True):
            column.append(flat.get(key))
        size += sum(len(value) for value in flat.values() if isinstance(value, str | list | dict))
        if len(columns[0]) >= most or size > GROUP_BYTES:
            yield columns
            columns, size = [[] for _ in keys], 0
    if columns[0]:
        yield columns


def _cells(values: list[Any], kind: Kind) -> list[Any]:
    """The values of a column as its type needs them."""
    if kind in (Kind.BOOL, Kind.INT):
        return values
    if kind in (Kind.FLOAT, Kind.INT | Kind.FLOAT):
        return [None if value is None else _as_float(value) for value in values]
    if kind == Kind.NUMBERS:
        return [None if value is None else [_as_float(item) for item in value] for value in values]
    return [None if value is None else _as_text(value) for value in values]


def _as_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode(errors="replace").decode()  # without lone surrogates


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf if value > 0 else -math.inf
