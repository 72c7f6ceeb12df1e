"""Pages of a large sweep's runs for the dashboard, filtered and sorted as static/runs_table.js does."""

import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kto_sweep.server.dashboard_data import Row, flat, placed_rows
from kto_sweep.server.store import runs
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.sweep.view import SweepView, TrialRecord
from kto_sweep.text import number_from_text
from kto_sweep.trial import lookup

PAGE = 500
"""Rows of a response."""
_COMPARISON = re.compile(r"(.+?)(<=|>=|!=|=|<|>)(.+)")
_ALIASES = {
    "run": "name",
    "id": "run_id",
    "time": "seconds",
    "judged on": "judged_on",
}
"""Columns of the table with another name in a run's place."""
_PLACED = frozenset({"rank", "state", "failure", "message", "progress", "standing", *_ALIASES.values()})
_COLUMNS = {"notes": "notes", "host": "host", "tags": "tags", "created": "created_at"}
"""Columns of the database, which are read when a filter needs them."""
_WITHOUT_CAUSE = frozenset({"", "failed", "crashed", "killed"})

Value = Callable[[TrialRecord, str], Any]


@dataclass(frozen=True)
class Query:
    """What a page's table asks for."""

    filter: str
    """Words, and comparisons such as `state=failed` or `learning_rate<1e-4`; each must match."""
    sort: str
    """The name of a column; `rank` is the order of the comparison."""
    descending: bool
    first: int
    """Number of the first row."""


def page(
    connection: sqlite3.Connection, sweep: Sweep, view: SweepView, places: Mapping[str, Row], query: Query
) -> Row:
    """The rows, and the `total` of those that match."""
    value = _Values(connection, sweep, places)
    trials = {trial.run_id: trial for trial in view.trials}
    tests = [_test(part, value) for part in query.filter.split()]
    matching = [
        trial
        for name in places
        if (trial := trials.get(name)) is not None and all(holds(trial) for holds in tests)
    ]
    if query.sort != "rank":
        matching = _sorted(matching, value, query)
    elif query.descending:
        ranked = [trial for trial in matching if places[trial.run_id]["rank"] is not None]
        matching = ranked[::-1] + matching[len(ranked) :]
    names = [trial.run_id for trial in matching[query.first : query.first + PAGE]]
    return {"total": len(matching), "runs": placed_rows(connection, sweep, names, places)}


class _Values:
    """Values of runs by column; what their trials do not have is read once for all runs."""

    def __init__(self, connection: sqlite3.Connection, sweep: Sweep, places: Mapping[str, Row]) -> None:
        self._connection, self._sweep, self._places = connection, sweep, places
        self._read: dict[str, dict[str, Any]] = {}

    def __call__(self, trial: TrialRecord, name: str) -> Any:
        """The value as a cell of the table has it."""
        key = _ALIASES.get(name, name)
        if key == "name":
            return trial.name
        if key in _PLACED:
            return self._places[trial.run_id][key]
        if key in _COLUMNS:
            return self._column(key).get(trial.run_id)
        found = lookup(trial.config, name)
        if found is None:
            found = self._column(name).get(trial.run_id)
        return flat({name: found}).get(name) if found is not None else None

    def words(self, trial: TrialRecord) -> str:
        """The texts that a word of a filter is looked for in."""
        place = self._places[trial.run_id]
        detail = place["progress"] if place["failure"] in _WITHOUT_CAUSE else place["failure"]
        parts = [trial.run_id, trial.name, f"{place['state']} ({detail})" if detail else place["state"]]
        parts += [place["standing"], place["failure"], place["message"]]
        parts += [self(trial, "notes"), self(trial, "host"), *(self(trial, "tags") or ())]
        parts += flat(trial.config).values()
        return " ".join(_text(part) for part in parts).lower()

    def _column(self, name: str) -> dict[str, Any]:
        if name not in self._read:
            self._read[name] = runs.values(self._connection, self._sweep.id, _COLUMNS.get(name), name)
        return self._read[name]


def _test(part: str, value: _Values) -> Callable[[TrialRecord], bool]:
    match = _COMPARISON.fullmatch(part)
    if match is None:
        return lambda trial: part.lower() in value.words(trial)
    name, sign, operand = match.groups()
    return lambda trial: _holds(value(trial, name), sign, operand)


def _holds(actual: Any, sign: str, operand: str) -> bool:
    if sign in ("=", "!="):
        return _is_same(actual, operand) == (sign == "=")
    number = number_from_text(operand)
    if isinstance(actual, bool) or not isinstance(actual, int | float) or number is None:
        return False
    return {
        "<": actual < number,
        ">": actual > number,
        "<=": actual <= number,
        ">=": actual >= number,
    }[sign]


def _is_same(actual: Any, operand: str) -> bool:
    if isinstance(actual, list):
        return operand in actual
    if isinstance(actual, int | float) and not isinstance(actual, bool):
        return actual == number_from_text(operand)
    return _text(actual).lower() == operand.lower()


def _text(value: Any) -> str:
    """As JavaScript writes it."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _sorted(trials: list[TrialRecord], value: Value, query: Query) -> list[TrialRecord]:
    """Numbers before texts, `run 9` before `run 10`; missing values last in both directions."""
    cells = {trial.run_id: value(trial, query.sort) for trial in trials}
    missing = [trial for trial in trials if _is_missing(cells[trial.run_id])]
    present = [trial for trial in trials if not _is_missing(cells[trial.run_id])]
    present.sort(key=lambda trial: _sort_key(cells[trial.run_id]), reverse=query.descending)
    return present + missing


def _is_missing(cell: Any) -> bool:
    return cell is None or cell == "" or (isinstance(cell, str) and cell.lower() == "nan")


def _sort_key(cell: Any) -> tuple[int, float, tuple[tuple[int, int, str], ...]]:
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return 0, cell, ()
    text = ",".join(map(_text, cell)) if isinstance(cell, list) else _text(cell)
    return 1, 0.0, tuple(_natural(text.lower()))


def _natural(text: str) -> Iterator[tuple[int, int, str]]:
    for part in re.findall(r"\d+|\D+", text):
        yield (0, int(part), "") if part.isdecimal() else (1, 0, part)
