"""Run filters and orders of the W&B API (MongoDB's words) as SQL over the run table.

Every name and value goes in as a parameter; nothing that a client wrote becomes SQL text.
"""

import datetime as dt
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kto_sweep.server.store.patterns import check_pattern, deadline

MAX_DEPTH = 12
MAX_CONDITIONS = 500
MAX_LIST = 10_000

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
_COMPARISONS = {"$eq": "IS", "$ne": "IS NOT", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


class FilterError(ValueError):
    """A filter or order that cannot be read; the text says why."""


@dataclass(frozen=True)
class Where:
    """A condition on the run table."""

    sql: str
    parameters: tuple[Any, ...] = ()

    def and_also(self, sql: str, *parameters: Any) -> "Where":
        """Both conditions."""
        return Where(f"({self.sql}) AND ({sql})", (*self.parameters, *parameters))


@dataclass(frozen=True)
class Order:
    """What to sort runs by."""

    sql: str
    direction: str
    """ASC or DESC."""
    parameters: tuple[Any, ...] = ()


EVERYTHING = Where("1")
NOTHING = Where("0")


def compile_filter(text: str | None) -> Where:
    """The condition that the JSON filter `text` means; no text, no condition.

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
    return _Compiler().condition(tree, 0)


def compile_order(text: str | None) -> Order | None:
    """The order that `+created_at`, `-summary_metrics.loss`, … mean; None for oldest first.

    Raises FilterError.
    """
    if not text:
        return None
    direction = "DESC" if text.startswith("-") else "ASC"
    key = text.lstrip("+-")
    if key in ("created_at", "createdAt"):
        return Order("run.id", direction)  # runs are numbered as they come, and there is an index for it
    sql, parameters, _ = _column(key)
    document, _, rest = key.partition(".")
    if document in _DOCUMENTS:
        # Only numbers can be ranked: a run that logged a dict or nothing comes last.
        number = f"CASE WHEN typeof({sql}) IN ('integer', 'real') THEN {sql} END"
        if document == "config":
            return Order(number, direction, parameters * 2)
        # The metric of a run's sweep has a column of its own; reading it spares reading the whole summary.
        ranked = f"CASE WHEN run.objective = ? THEN run.objective_value ELSE {number} END"
        return Order(ranked, direction, (rest, *parameters * 2))
    return Order(sql, direction, parameters)


def _column(key: str) -> tuple[str, tuple[Any, ...], bool]:
    """SQL for one key, its parameters, and whether it holds a time."""
    if key in _PLAIN:
        return _PLAIN[key], (), False
    if key in _TIMES:
        return _TIMES[key], (), True
    if key in _DURATIONS:
        return _DURATIONS[key], (), False
    document, _, rest = key.partition(".")
    if document in _DOCUMENTS and rest:
        paths = _config_paths(rest) if document == "config" else _summary_paths(rest)
        extracts = ", ".join(f"json_extract({_DOCUMENTS[document]}, ?)" for _ in paths)
        return (f"COALESCE({extracts}, NULL)"), tuple(paths), False
    raise FilterError(
        f"cannot filter or sort runs by {key!r}; try config.NAME, summary_metrics.NAME, state or name"
    )


def _config_paths(name: str) -> list[str]:
    """Where `config.NAME` may stand: a key of that very name, or a key and a path below its value."""
    parts = name.split(".")
    if len(parts) > 1 and parts[-1] == "value":
        return [_path(".".join(parts[:-1]), "value"), _path(parts[0], *parts[1:])]
    if len(parts) > 2 and parts[1] == "value":
        return [_path(name, "value"), _path(parts[0], *parts[1:])]
    return [_path(name, "value"), _path(parts[0], "value", *parts[1:])]


def _summary_paths(name: str) -> list[str]:
    return [_path(name), _path(*name.split("."))]


def _path(*keys: str) -> str:
    # SQLite's JSON paths have no escape for a quote and end at a zero, so such a key matches nothing.
    return "$" + "".join('."' + re.sub('["\0]', "\N{REPLACEMENT CHARACTER}", key) + '"' for key in keys)


class _Compiler:
    """Counts conditions while it walks, so that no filter can grow without bound."""

    def __init__(self) -> None:
        self._conditions = 0

    def condition(self, tree: Any, depth: int) -> Where:
        """The condition of one JSON object: all of its entries."""
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
            return _tags(value)
        return _compare_all(key, value)


def _not(inner: Where) -> Where:
    """Runs that the condition does not hold for; a run without the value is one of them."""
    return Where(f"NOT COALESCE(({inner.sql}), 0)", inner.parameters)


def _join(parts: list[Where], word: str, empty: str) -> Where:
    if not parts:
        return Where(empty)
    return Where(
        f" {word} ".join(f"({part.sql})" for part in parts),
        tuple(parameter for part in parts for parameter in part.parameters),
    )


def _compare_all(key: str, value: Any) -> Where:
    """The condition of `key: value` or `key: {$gt: …, $lt: …}`."""
    if isinstance(value, Mapping) and any(str(name).startswith("$") for name in value):
        return _join([_compare(key, operator, operand) for operator, operand in value.items()], "AND", "1")
    return _compare(key, "$eq", value)


def _compare(key: str, operator: str, operand: Any) -> Where:
    """The condition of one operator on one key."""
    if operator == "$not" and isinstance(operand, Mapping):
        return _not(_compare_all(key, operand))
    if key == "sweep" and operator == "$eq" and isinstance(operand, str):
        own = "run.sweep_id IN (SELECT sweep.id FROM sweep WHERE sweep.name = ?)"
        prior = "SELECT run_id FROM prior_run JOIN sweep ON sweep.id = sweep_id WHERE sweep.name = ?"
        return Where(f"({own} OR run.id IN ({prior}))", (operand, operand))
    sql, parameters, is_time = _column(key)
    if operator in ("$in", "$nin"):
        return _membership(sql, parameters, operand, is_time, inside=operator == "$in")
    if operator == "$exists":
        return Where(f"{sql} IS {'NOT ' if operand else ''}NULL", parameters)
    if operator == "$regex":
        return _pattern(sql, parameters, operand)
    if operator not in _COMPARISONS:
        raise FilterError(f"unknown operator {operator!r} on {key!r}")
    return _comparison(sql, parameters, operator, _value(operand, is_time))


def _comparison(sql: str, parameters: tuple[Any, ...], operator: str, wanted: Any) -> Where:
    found = Where(f"{sql} {_COMPARISONS[operator]} ?", (*parameters, wanted))
    # To SQLite every text is greater than any number; to a client they cannot be compared.
    if operator in ("$gt", "$gte") and isinstance(wanted, int | float):
        return found.and_also(f"{sql} < ''", *parameters)
    if operator in ("$lt", "$lte") and isinstance(wanted, str):
        return found.and_also(f"{sql} >= ''", *parameters)
    return found


def _pattern(sql: str, parameters: tuple[Any, ...], pattern: Any) -> Where:
    try:
        check_pattern(str(pattern))
    except ValueError as problem:
        raise FilterError(f"$regex {pattern!r}: {problem}") from problem
    return Where(f"matches_pattern(?, {sql}, ?)", (str(pattern), *parameters, deadline()))


def _membership(sql: str, parameters: tuple[Any, ...], operand: Any, is_time: bool, *, inside: bool) -> Where:
    if not isinstance(operand, list) or len(operand) > MAX_LIST:
        raise FilterError(f"$in and $nin need a list of at most {MAX_LIST} values")
    # A list as one JSON parameter: SQLite bounds the number of parameters.
    values = _json([_value(item, is_time) for item in operand])
    found = f"COALESCE({sql} IN (SELECT value FROM json_each(?)), 0)"
    return Where(found if inside else f"NOT {found}", (*parameters, values))


def _tags(value: Any) -> Where:
    """Runs that have the tag, or for `$in` any of the tags, for `$all` all of them."""
    operator, operand = (
        next(iter(value.items()), ("$in", [])) if isinstance(value, Mapping) else ("$in", [value])
    )
    if not isinstance(operand, list):
        operand = [operand]
    found = (
        "SELECT COUNT(DISTINCT value) FROM json_each(run.tags)"
        " WHERE value IN (SELECT value FROM json_each(?))"
    )
    wanted = _json(operand[:MAX_LIST])
    if operator in ("$in", "$eq"):
        return Where(f"({found}) > 0", (wanted,))
    if operator in ("$nin", "$ne"):
        return Where(f"({found}) = 0", (wanted,))
    if operator == "$all":
        return Where(f"({found}) = ?", (wanted, len(set(map(str, operand)))))
    raise FilterError(f"unknown operator {operator!r} on 'tags'")


def _value(value: Any, is_time: bool) -> Any:
    """A value as SQLite compares it: times in seconds, truth as 0 or 1, lists and objects as JSON text."""
    if is_time and isinstance(value, str):
        try:
            moment = dt.datetime.fromisoformat(value)
        except ValueError as problem:
            raise FilterError(f"{value!r} is not a time such as 2026-01-31T12:00:00Z") from problem
        return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()
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
