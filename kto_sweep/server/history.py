"""A run's history in the forms that clients query: rows, samples, selected keys, key index."""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from kto_sweep.server import history_blocks
from kto_sweep.server.errors import RequestError
from kto_sweep.server.store import lines
from kto_sweep.server.wire import wire_safe

T = TypeVar("T")

MAX_SAMPLES = 100_000
"""Maximum rows of a response."""


def sample(rows: Sequence[T], count: int | None) -> list[T]:
    """At most `count` evenly spaced rows, including the first and the last."""
    limit = MAX_SAMPLES if count is None else max(0, min(count, MAX_SAMPLES))
    if len(rows) <= limit:
        return list(rows)
    if limit < 2:
        return list(rows[-1:]) * limit
    return [rows[i * (len(rows) - 1) // (limit - 1)] for i in range(limit)]


def page(
    connection: sqlite3.Connection, run_id: int, lowest: int | None, below: int | None, samples: int | None
) -> list[str]:
    """History rows as JSON text, with `lowest` <= step < `below`.

    A range of steps is not sampled: clients that page by steps need every row, even where steps repeat.
    """
    rows = list(lines.history(connection, run_id, lowest, below))
    return sample(rows, samples if lowest is None and below is None else None)


def sampled(connection: sqlite3.Connection, run_id: int, spec_text: str) -> list[dict[str, Any]]:
    """The rows of one sampledHistory spec: those that have all its keys, reduced to these keys.

    Raises RequestError.
    """
    spec = _spec(spec_text)
    lowest, highest = spec.get("minStep"), spec.get("maxStep")
    keys, samples = spec.get("keys"), spec.get("samples")
    few = samples if samples is not None and samples <= history_blocks.LONG else None
    is_whole = lowest is None and highest is None
    if few is not None and is_whole and history_blocks.is_long(connection, run_id):
        texts: Iterable[str] = history_blocks.sampled_lines(connection, run_id, keys, few)
    else:
        texts = lines.history(connection, run_id, lowest, None if highest is None else highest + 1)
    rows = []
    for text in texts:
        row = lines.as_row(text) or {}
        if keys is None:
            rows.append(wire_safe(row))
        elif all(_has(row, key) for key in keys):
            rows.append({key: wire_safe(_at(row, key)) for key in keys})
    return sample(rows, samples)


def _spec(text: str) -> dict[str, Any]:
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise RequestError(f"the history spec is not JSON: {problem}") from problem
    keys = spec.get("keys") if isinstance(spec, dict) else ()
    if not (keys is None or isinstance(keys, list)):
        raise RequestError("the history spec is not an object with a list of keys")
    numbers = [spec.get(name) for name in ("minStep", "maxStep", "samples")]
    if any(number is not None and not isinstance(number, int) for number in numbers):
        raise RequestError("minStep, maxStep and samples of a history spec must be whole numbers")
    return dict(spec)


def _at(row: Mapping[str, Any], key: str) -> Any:
    """The value at `key`, or at `key` as a dotted path."""
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _has(row: Mapping[str, Any], key: str) -> bool:
    return isinstance(key, str) and _at(row, key) is not None


def live_rows(connection: sqlite3.Connection, run_id: int, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The selected keys of every row."""
    rows = (lines.as_row(text) or {} for text in lines.history(connection, run_id))
    return [{key: wire_safe(row[key]) for key in keys if key in row} for row in rows]


def keys_index(connection: sqlite3.Connection, run_id: int) -> dict[str, Any]:
    """Key index of the history: types and counts of each key's values, and the last step."""
    rows = (lines.as_row(text) or {} for text in lines.history(connection, run_id))
    return {
        "keys": {key: _key_entry(values) for key, values in sorted(_by_key(rows).items())},
        "sets": [],
        "lastStep": lines.last_step(connection, run_id),
    }


def _by_key(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """All values by key; nested objects become dotted keys, except the SDK's own objects (`_type`)."""
    by_key: dict[str, list[Any]] = {}
    for row in rows:
        waiting = list(row.items())
        while waiting:
            key, value = waiting.pop()
            if isinstance(value, dict) and value and "_type" not in value:
                waiting += [(f"{key}.{name}", item) for name, item in value.items()]
            else:
                by_key.setdefault(key, []).append(value)
    return by_key


def _key_entry(values: list[Any]) -> dict[str, Any]:
    types: dict[str, int] = {}
    for value in values:
        name = _type_name(value)
        types[name] = types.get(name, 0) + 1
    numbers = [value for value in values if _type_name(value) == "number"]
    rising = len(numbers) == len(values) and all(a <= b for a, b in pairwise(numbers))
    return {
        "typeCounts": [{"type": name, "count": count} for name, count in types.items()],
        "monotonic": rising,
        "previousValue": wire_safe(numbers[-1]) if numbers else -9007199254740991,
    }


def _type_name(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "map" if isinstance(value, dict) else "list" if isinstance(value, list) else "nil"
