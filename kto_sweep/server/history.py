"""A run's history in the shapes in which clients read it: rows, samples, chosen keys, an index of keys."""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from kto_sweep.server.errors import RequestError
from kto_sweep.server.store import lines
from kto_sweep.server.wire import wire_safe

T = TypeVar("T")

MAX_SAMPLES = 100_000
"""Rows of one answer at most."""


def sample(rows: Sequence[T], count: int | None) -> list[T]:
    """At most `count` rows, evenly spread, the first and the last among them."""
    wanted = MAX_SAMPLES if count is None else max(0, min(count, MAX_SAMPLES))
    if len(rows) <= wanted:
        return list(rows)
    if wanted < 2:
        return list(rows[-1:]) * wanted
    return [rows[i * (len(rows) - 1) // (wanted - 1)] for i in range(wanted)]


def page(
    connection: sqlite3.Connection, run_id: int, lowest: int | None, below: int | None, samples: int | None
) -> list[str]:
    """History rows as JSON text, of steps from `lowest` up to, and without, `below`.

    A range of steps comes whole: a client that pages by steps counts on every row, even where steps repeat.
    """
    rows = list(lines.history(connection, run_id, lowest, below))
    return sample(rows, samples if lowest is None and below is None else None)


def sampled(connection: sqlite3.Connection, run_id: int, spec_text: str) -> list[dict[str, Any]]:
    """The rows that one sampledHistory spec asks for: those with all its keys, and only these keys.

    Raises RequestError.
    """
    spec = _spec(spec_text)
    lowest, highest = spec.get("minStep"), spec.get("maxStep")
    texts = lines.history(connection, run_id, lowest, None if highest is None else highest + 1)
    keys = spec.get("keys")
    found = []
    for text in texts:
        row = lines.as_row(text) or {}
        if keys is None:
            found.append(wire_safe(row))
        elif all(_has(row, key) for key in keys):
            found.append({key: wire_safe(_at(row, key)) for key in keys})
    return sample(found, spec.get("samples"))


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
        raise RequestError("minStep, maxStep and samples of a history spec are whole numbers")
    return dict(spec)


def _at(row: Mapping[str, Any], key: str) -> Any:
    """The value of `key`, or of the path that its dots make."""
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _has(row: Mapping[str, Any], key: str) -> bool:
    return isinstance(key, str) and _at(row, key) is not None


def live_rows(connection: sqlite3.Connection, run_id: int, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The chosen keys of every row."""
    rows = (lines.as_row(text) or {} for text in lines.history(connection, run_id))
    return [{key: wire_safe(row[key]) for key in keys if key in row} for row in rows]


def keys_index(connection: sqlite3.Connection, run_id: int) -> dict[str, Any]:
    """What the history holds: each key with the types and counts of its values, and the last step."""
    rows = (lines.as_row(text) or {} for text in lines.history(connection, run_id))
    return {
        "keys": {key: _key_entry(values) for key, values in sorted(_by_key(rows).items())},
        "sets": [],
        "lastStep": lines.last_step(connection, run_id),
    }


def _by_key(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """All values of each key; those inside an object under dotted names, but for the SDK's own objects."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        waiting = list(row.items())
        while waiting:
            key, value = waiting.pop()
            if isinstance(value, dict) and value and "_type" not in value:
                waiting += [(f"{key}.{name}", item) for name, item in value.items()]
            else:
                found.setdefault(key, []).append(value)
    return found


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
