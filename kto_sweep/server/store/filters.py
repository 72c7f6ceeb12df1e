"""Compiles filters and orders of the W&B API (MongoDB syntax) to SQL: of runs, and of what has other columns.

Every name and value becomes a bound parameter; client input never becomes SQL text.
"""

import datetime as dt
import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kto_sweep.server.store.patterns import check_pattern, deadline, timed_out

MAX_DEPTH = 12
MAX_CONDITIONS = 500
MAX_LIST = 10_000


@dataclass(frozen=True)
class Columns:
    """What filters and orders of one kind of record may name, as SQL by key."""

    kind: str
    """What the records are, for errors."""
    creation: str
    """SQL that ascends with the time of creation, and is indexed."""
    plain: Mapping[str, str]
    times: Mapping[str, str]
    tags: str
    """SQL of the tags, a JSON list."""
    examples: str
    """Keys that an error suggests."""
    durations: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)
    """Strict JSON objects; a key names a value in one by a path."""


_PLAIN = {
    "name": "run.name",
    "display_name": "run.display_name",
    "displayName": "run.display_name",
    "state": "run.state",
    "sweep": "(SELECT sweep.name FROM sweep WHERE sweep.id = run.sweep_id)",
    "group": "run.group_name",
    "group_name": "run.group_name",
    "job_type": "run.job_type",
    "jobType": "run.job_type",
    "host": "run.host",
    "commit": "run.commit_hash",
    "description": "run.description",
    "notes": "run.notes",
    "username": "'local'",
    "user": "'local'",
    "id": "run.name",
}
_TIMES = {
    "created_at": "run.created_at",
    "createdAt": "run.created_at",
    "heartbeat_at": "run.heartbeat_at",
    "heartbeatAt": "run.heartbeat_at",
    "updated_at": "run.heartbeat_at",
    "updatedAt": "run.heartbeat_at",
}
_DURATIONS = {"duration": "(run.heartbeat_at - run.created_at)"}
_DOCUMENTS = {
    "config": "COALESCE(run.strict_config, run.config)",
    "summary_metrics": "COALESCE(run.strict_summary, run.summary)",
    "summary": "COALESCE(run.strict_summary, run.summary)",
    "summaryMetrics": "COALESCE(run.strict_summary, run.summary)",
}
RUNS = Columns(
    "runs",
    "run.id",
    _PLAIN,
    _TIMES,
    "run.tags",
    "config.NAME, summary_metrics.NAME, state or name",
    _DURATIONS,
    _DOCUMENTS,
)
_COMPARISONS = {"$eq": "IS", "$ne": "IS NOT", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


class FilterError(ValueError):
    """The filter or order is invalid; the message says why."""


@dataclass(frozen=True)
class Where:
    """A condition on a table."""

    sql: str
    parameters: tuple[Any, ...] = ()

    def and_also(self, sql: str, *parameters: Any) -> "Where":
        """Both conditions."""
        return Where(f"({self.sql}) AND ({sql})", (*self.parameters, *parameters))


@dataclass(frozen=True)
class Order:
    """A sort order."""

    sql: str
    direction: str
    """ASC or DESC."""
    parameters: tuple[Any, ...] = ()


EVERYTHING = Where("1")
NOTHING = Where("0")


def compile_filter(text: str | None, columns: Columns = RUNS) -> Where:
    """Compiles a JSON filter; an empty one matches every record.

    Raises FilterError.
    """
    if not text:
        return EVERYTHING
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise FilterError(f"the filter is not JSON: {problem}") from problem
    if not tree:
        return EVERYTHING
    return _Compiler(columns).condition(tree, 0)


def select(connection: sqlite3.Connection, query: str, parameters: Sequence[Any]) -> list[sqlite3.Row]:
    """Rows of a query that contains a client's filter. Raises FilterError when it takes too long."""
    try:
        return connection.execute(query, parameters).fetchall()
    except sqlite3.OperationalError as problem:
        if timed_out(problem):
            raise FilterError("the filter's $regex takes too long") from problem
        raise


def compile_order(text: str | None, columns: Columns = RUNS) -> Order | None:
    """Compiles an order such as `+created_at` or `-summary_metrics.loss`; None means oldest first.

    Raises FilterError.
    """
    if not text:
        return None
    direction = "DESC" if text.startswith("-") else "ASC"
    key = text.lstrip("+-")
    if key in ("created_at", "createdAt"):
        return Order(columns.creation, direction)
    sql, parameters, _ = _column(columns, key)
    document, _, rest = key.partition(".")
    if document in columns.documents:
        # Only numbers are sorted: a run that logged an object or nothing comes last.
        number = f"CASE WHEN typeof({sql}) IN ('integer', 'real') THEN {sql} END"
        if document == "config" or columns is not RUNS:
            return Order(number, direction, parameters * 2)
        # The metric of the run's sweep has its own column, which is faster than parsing the summary.
        ranked = f"CASE WHEN run.objective = ? THEN run.objective_value ELSE {number} END"
        return Order(ranked, direction, (rest, *parameters * 2))
    return Order(sql, direction, parameters)


def _column(columns: Columns, key: str) -> tuple[str, tuple[Any, ...], bool]:
    """SQL for one key, its parameters, and whether it holds a time."""
    if key in columns.plain:
        return columns.plain[key], (), False
    if key in columns.times:
        return columns.times[key], (), True
    if key in columns.durations:
        return columns.durations[key], (), False
    document, _, rest = key.partition(".")
    if document in columns.documents and rest:
        paths = _config_paths(rest) if document == "config" else _summary_paths(rest)
        extracts = ", ".join(f"json_extract({columns.documents[document]}, ?)" for _ in paths)
        return (f"COALESCE({extracts}, NULL)"), tuple(paths), False
    raise FilterError(f"cannot filter or sort {columns.kind} by {key!r}; try {columns.examples}")


def _config_paths(name: str) -> list[str]:
    """JSON paths of `config.NAME`: a key of that exact name, or a key and a path below its value."""
    parts = name.split(".")
    if len(parts) > 1 and parts[-1] == "value":
        return [_path(".".join(parts[:-1]), "value"), _path(parts[0], *parts[1:])]
    if len(parts) > 2 and parts[1] == "value":
        return [_path(name, "value"), _path(parts[0], *parts[1:])]
    return [_path(name, "value"), _path(parts[0], "value", *parts[1:])]


def _summary_paths(name: str) -> list[str]:
    return [_path(name), _path(*name.split("."))]


def _path(*keys: str) -> str:
    # SQLite's JSON paths cannot escape a quote and end at a NUL, so such a key matches nothing.
    return "$" + "".join('."' + re.sub('["\0]', "\N{REPLACEMENT CHARACTER}", key) + '"' for key in keys)


class _Compiler:
    """Compiles a filter tree and limits its number of conditions."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._conditions = 0

    def condition(self, tree: Any, depth: int) -> Where:
        """The condition of a JSON object: all of its entries."""
        if depth > MAX_DEPTH:
            raise FilterError(f"the filter is nested deeper than {MAX_DEPTH}")
        if not isinstance(tree, Mapping):
            raise FilterError(f"expected an object such as {{'state': 'finished'}}, found {str(tree)[:80]!r}")
        return _join([self._entry(key, value, depth) for key, value in tree.items()], "AND", "1")

    def _entry(self, key: str, value: Any, depth: int) -> Where:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise FilterError(f"the filter has more than {MAX_CONDITIONS} conditions")
        if key in ("$and", "$or", "$nor"):
            if not isinstance(value, list):
                raise FilterError(f"{key} needs a list")
            parts = [self.condition(item, depth + 1) for item in value]
            joined = _join(parts, "AND" if key == "$and" else "OR", "1" if key == "$and" else "0")
            return _not(joined) if key == "$nor" else joined
        if key == "$not":
            return _not(self.condition(value, depth + 1))
        if key == "tags":
            return _tags(self._columns, value)
        return _compare_all(self._columns, key, value)


def _not(inner: Where) -> Where:
    """Negation; a record without the value matches."""
    return Where(f"NOT COALESCE(({inner.sql}), 0)", inner.parameters)


def _join(parts: list[Where], word: str, empty: str) -> Where:
    if not parts:
        return Where(empty)
    return Where(
        f" {word} ".join(f"({part.sql})" for part in parts),
        tuple(parameter for part in parts for parameter in part.parameters),
    )


def _compare_all(columns: Columns, key: str, value: Any) -> Where:
    """The condition of `key: value` or `key: {$gt: …, $lt: …}`."""
    if isinstance(value, Mapping) and any(str(name).startswith("$") for name in value):
        parts = [_compare(columns, key, operator, operand) for operator, operand in value.items()]
        return _join(parts, "AND", "1")
    return _compare(columns, key, "$eq", value)


def _compare(columns: Columns, key: str, operator: str, operand: Any) -> Where:
    """The condition of one operator on one key."""
    if operator == "$not" and isinstance(operand, Mapping):
        return _not(_compare_all(columns, key, operand))
    if columns is RUNS and key == "sweep" and operator == "$eq" and isinstance(operand, str):
        own = "run.sweep_id IN (SELECT sweep.id FROM sweep WHERE sweep.name = ?)"
        prior = "SELECT run_id FROM prior_run JOIN sweep ON sweep.id = sweep_id WHERE sweep.name = ?"
        return Where(f"({own} OR run.id IN ({prior}))", (operand, operand))
    sql, parameters, is_time = _column(columns, key)
    if operator in ("$in", "$nin"):
        return _membership(sql, parameters, operand, is_time, inside=operator == "$in")
    if operator == "$exists":
        return Where(f"{sql} IS {'NOT ' if operand else ''}NULL", parameters)
    if operator == "$regex":
        return _pattern(sql, parameters, operand)
    if operator not in _COMPARISONS:
        raise FilterError(f"unknown operator {operator!r} on {key!r}")
    return _comparison(sql, parameters, operator, _value(operand, is_time))


def _comparison(sql: str, parameters: tuple[Any, ...], operator: str, operand: Any) -> Where:
    where = Where(f"{sql} {_COMPARISONS[operator]} ?", (*parameters, operand))
    # In SQLite every text is greater than any number; for clients they are not comparable.
    if operator in ("$gt", "$gte") and isinstance(operand, int | float):
        return where.and_also(f"{sql} < ''", *parameters)
    if operator in ("$lt", "$lte") and isinstance(operand, str):
        return where.and_also(f"{sql} >= ''", *parameters)
    return where


def _pattern(sql: str, parameters: tuple[Any, ...], pattern: Any) -> Where:
    try:
        check_pattern(str(pattern))
    except ValueError as problem:
        raise FilterError(f"$regex {pattern!r}: {problem}") from problem
    return Where(f"matches_pattern(?, {sql}, ?)", (str(pattern), *parameters, deadline()))


def _membership(sql: str, parameters: tuple[Any, ...], operand: Any, is_time: bool, *, inside: bool) -> Where:
    if not isinstance(operand, list) or len(operand) > MAX_LIST:
        raise FilterError(f"$in and $nin need a list of at most {MAX_LIST} values")
    # Pass the list as one JSON parameter: SQLite limits the number of parameters.
    values = _json([_value(item, is_time) for item in operand])
    condition = f"COALESCE({sql} IN (SELECT value FROM json_each(?)), 0)"
    return Where(condition if inside else f"NOT {condition}", (*parameters, values))


def _tags(columns: Columns, value: Any) -> Where:
    """Records with the tag; `$in`: with any of the tags, `$all`: with all of them."""
    operator, operand = (
        next(iter(value.items()), ("$in", [])) if isinstance(value, Mapping) else ("$in", [value])
    )
    if not isinstance(operand, list):
        operand = [operand]
    matches = (
        f"SELECT COUNT(DISTINCT value) FROM json_each({columns.tags})"
        " WHERE value IN (SELECT value FROM json_each(?))"
    )
    tags = _json(operand[:MAX_LIST])
    if operator in ("$in", "$eq"):
        return Where(f"({matches}) > 0", (tags,))
    if operator in ("$nin", "$ne"):
        return Where(f"({matches}) = 0", (tags,))
    if operator == "$all":
        return Where(f"({matches}) = ?", (tags, len(set(map(str, operand)))))
    raise FilterError(f"unknown operator {operator!r} on 'tags'")


def _value(value: Any, is_time: bool) -> Any:
    """A value as SQLite compares it: times in seconds, booleans as 0 or 1, lists and objects as JSON."""
    if is_time and isinstance(value, str):
        try:
            time = dt.datetime.fromisoformat(value)
        except ValueError as problem:
            raise FilterError(f"{value!r} is not a time such as 2026-01-31T12:00:00Z") from problem
        return (time if time.tzinfo else time.replace(tzinfo=dt.UTC)).timestamp()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int) and abs(value) >= 2**63:
        return float(value)
    if isinstance(value, list | dict):
        return _json(value)
    return value


def _json(value: Any) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError as problem:
        raise FilterError("a filter cannot hold NaN or Infinity") from problem
