"""Rows of parquet and Arrow tables as plain JSON values that keep the meaning of typed columns.

All rows of a table have the same keys and types, unlike those of JSON: a ClassLabel becomes its name, and a
null with which the table fills a key that only other rows have is left out.
"""

import base64
import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, BinaryIO

from kto_sweep.data.raw_rows import RawRow
from kto_sweep.errors import DataError
from kto_sweep.json_file import parse_json

READ_BYTES = 1 << 20
"""Of a column at once: by default a whole row group is read, which may be the whole file."""
BATCH_ROWS = 1000
"""Rows in memory as Python values at once."""

Convert = Callable[[Any], Any]
"""From a value of a column to a JSON value."""
Feature = Any
"""A column's type in the words of the `datasets` library, as JSON; None if unknown."""


def read_parquet(stream: BinaryIO, name: str) -> Iterator[RawRow]:
    """Rows of a parquet file. Raises DataError for a damaged file or row."""
    from pyarrow import parquet

    with _damage(name, "parquet"):
        file = parquet.ParquetFile(stream, buffer_size=READ_BYTES, pre_buffer=False)
        batches = file.iter_batches(BATCH_ROWS)
        yield from batch_rows(batches, file.schema_arrow, features_of(file.schema_arrow), name)


def read_arrow_file(stream: BinaryIO, name: str) -> Iterator[RawRow]:
    """Rows of an Arrow (Feather) file. Raises DataError for a damaged file or row."""
    import pyarrow as pa

    with _damage(name, "Arrow"):
        file = pa.ipc.open_file(_mapped(stream))
        batches = (file.get_batch(i) for i in range(file.num_record_batches))
        yield from batch_rows(batches, file.schema, features_of(file.schema), name)


def read_arrow_stream(stream: BinaryIO, name: str) -> Iterator[RawRow]:
    """Rows of an Arrow stream, the cache format of `datasets`. Raises DataError for a damaged file or row."""
    import pyarrow as pa

    with _damage(name, "Arrow"):
        batches = pa.ipc.open_stream(_mapped(stream))
        yield from batch_rows(batches, batches.schema, features_of(batches.schema), name)


def _mapped(stream: BinaryIO) -> Any:
    """The file in memory that the system can take back: one batch may hold all rows."""
    import pyarrow as pa

    return pa.BufferReader(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


@contextmanager
def _damage(name: str, form: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{name}: not a complete {form} file: {reason}", hint="download or write it again"
        ) from error


def features_of(schema: Any) -> Mapping[str, Feature]:
    """The types of a schema's columns that the `datasets` library has noted in it; empty if it has not."""
    try:
        return dict(parse_json(schema.metadata[b"huggingface"])["info"]["features"])
    except (TypeError, KeyError, ValueError):
        return {}


def batch_rows(
    batches: Iterable[Any], schema: Any, features: Mapping[str, Feature], name: str
) -> Iterator[RawRow]:
    """Rows of Arrow batches or tables with this schema, counted from 1."""
    for column in schema.names:
        if schema.names.count(column) > 1:
            raise DataError(f"{name}: two columns are named {column}", hint="rename or remove one of the two")
    converts = [_converter(field.type, features.get(field.name)) for field in schema]
    number = 1
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            part = batch.slice(start, BATCH_ROWS)
            for row in _rows_of(part, schema.names, converts, number, name):
                yield RawRow(number, row, name)
                number += 1


def _rows_of(
    batch: Any, names: list[str], converts: list[Convert], number: int, name: str
) -> list[dict[str, Any]]:
    try:
        columns = [
            map(convert, column.to_pylist()) for column, convert in zip(batch.columns, converts, strict=True)
        ]
        return [_without_nulls(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    except ValueError as error:  # such as a text that is not UTF-8
        if batch.num_rows == 1:
            raise DataError(
                f"{name}: row {number} cannot be read: {error}", hint="write the file again without this row"
            ) from error
    return [_rows_of(batch.slice(i, 1), names, converts, number + i, name)[0] for i in range(batch.num_rows)]


def _without_nulls(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in pairs if value is not None}


def _converter(kind: Any, feature: Feature) -> Convert:  # noqa: PLR0911
    """What makes a JSON value of a column's values; `kind`: the column's Arrow type."""
    from pyarrow import types

    named_type = feature.get("_type") if isinstance(feature, Mapping) else None
    if named_type == "ClassLabel":
        names = dict(enumerate(feature["names"]))  # -1 is a missing label
        return names.get
    if named_type == "Json" or getattr(kind, "extension_name", "") == "arrow.json":
        return lambda value: parse_json(value) if isinstance(value, str) else value
    if types.is_dictionary(kind):
        return _converter(kind.value_type, feature)
    if types.is_struct(kind):
        return _struct_converter(kind, feature)
    if types.is_map(kind):
        convert = _converter(kind.item_type, None)
        return lambda pairs: None if pairs is None else {str(key): convert(value) for key, value in pairs}
    if hasattr(kind, "value_type"):  # every kind of list
        convert = _converter(kind.value_type, _item_feature(feature))
        return lambda items: items if items is None else [convert(item) for item in items]
    if (
        types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
    ):
        return lambda value: value
    return _plain


def _struct_converter(kind: Any, feature: Feature) -> Convert:
    children = {field.name: _converter(field.type, _child_feature(feature, field.name)) for field in kind}

    def convert(value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is None:
            return None
        return _without_nulls((key, children[key](item)) for key, item in value.items())

    return convert


def _child_feature(feature: Feature, key: str) -> Feature:
    """The feature of a struct's key. `datasets` had a Sequence of dicts that is stored as a dict of lists."""
    if not isinstance(feature, Mapping):
        return None
    if feature.get("_type") == "Sequence" and isinstance(feature.get("feature"), Mapping):
        return {"feature": feature["feature"].get(key)}
    return feature.get(key)


def _item_feature(feature: Feature) -> Feature:
    if isinstance(feature, list) and feature:
        return feature[0]
    return feature.get("feature") if isinstance(feature, Mapping) else None


def _plain(value: Any) -> Any:
    """A JSON value for a number, date or bytes; None for NaN, which pandas writes for a missing number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if value is None or isinstance(value, str | int):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
