"""How much each parameter matters for a metric, as W&B shows it: a random forest's view, and correlation.

A pure function of plain values. scikit-learn is imported when it is asked.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]

FEWEST_RUNS = 8
"""With fewer values of the metric any answer would be noise."""
RUNS_PER_PARAMETER = 3
"""So many runs for each parameter, or the answer comes with a caution."""
TREES = 200
SEED = 0
LOG_RATIO = 50.0
"""Positive values that differ by more than this are read on a log scale."""


@dataclass(frozen=True)
class Importance:
    """One parameter's part in the metric."""

    name: str
    importance: float
    """Its share of what the forest explains; all shares sum to 1."""
    correlation: float | None
    """Linear, with the metric, -1 to 1; None for a parameter of names."""


@dataclass(frozen=True)
class Importances:
    """All parameters, the most important first."""

    rows: tuple[Importance, ...]
    """Empty when there are too few runs to tell."""
    note: str
    """How sure it is, or why there is no answer; one sentence."""


def importances(
    names: Sequence[str], configs: Sequence[Mapping[str, Any]], values: Sequence[float | None]
) -> Importances:
    """What the runs tell of the named parameters; `values` is the metric of each, None where it has none.

    Configurations have dotted names. Numbers over several orders of magnitude are read on a log scale; all
    else is told apart by name, one column for each value, whose importances are summed.
    """
    kept = [i for i, value in enumerate(values) if value is not None and math.isfinite(value)]
    target = np.array([values[i] for i in kept], dtype=np.float64)
    columns = {name: _columns([configs[i].get(name) for i in kept]) for name in names}
    columns = {name: found for name, found in columns.items() if found}
    if len(kept) < FEWEST_RUNS:
        return Importances((), f"{len(kept)} runs have a value; from {FEWEST_RUNS} on this can be told.")
    if not columns or np.ptp(target) == 0:
        return Importances((), "Nothing differs between the runs that have a value.")
    shares, score = _forest(columns, target)
    rows = [
        Importance(name, share, _correlation(found, target))
        for (name, found), share in zip(columns.items(), shares, strict=True)
    ]
    rows.sort(key=lambda row: -row.importance)
    return Importances(tuple(rows), _note(len(kept), len(columns), score))


def _columns(values: Sequence[Any]) -> list[Column]:
    """The values as columns that vary: one of numbers, or one for each name. Empty when all are the same."""
    numbers = [_number(value) for value in values]
    if all(number is not None for number in numbers):
        column = np.array(numbers, dtype=np.float64)
        if len(column) == 0 or np.ptp(column) == 0:
            return []
        if column.min() > 0 and column.max() / column.min() >= LOG_RATIO:
            column = np.log(column)
        return [column]
    texts = [str(value) for value in values]
    different = sorted(set(texts))
    if len(different) < 2:
        return []
    return [np.array([text == one for text in texts], dtype=np.float64) for one in different]


def _number(value: object) -> float | None:
    """The number, also where YAML has made a text of it, as of 5e-7."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _forest(columns: Mapping[str, list[Column]], target: Column) -> tuple[list[float], float]:
    """Each parameter's share, and how much the forest explains of runs that it has not seen (R2)."""
    from sklearn.ensemble import RandomForestRegressor

    table = np.column_stack([column for found in columns.values() for column in found])
    forest = RandomForestRegressor(n_estimators=TREES, min_samples_leaf=2, oob_score=True, random_state=SEED)
    forest.fit(table, target)
    ends = np.cumsum([len(found) for found in columns.values()])
    shares = [float(part.sum()) for part in np.split(forest.feature_importances_, ends[:-1])]
    return shares, float(forest.oob_score_)


def _correlation(found: list[Column], target: Column) -> float | None:
    if len(found) > 1:
        return None
    return float(np.corrcoef(found[0], target)[0, 1])


def _note(runs: int, parameters: int, score: float) -> str:
    if score <= 0:
        return f"{runs} runs; a random forest cannot predict a run from the others, so take this as a guess."
    sure = f"{runs} runs; a random forest explains {score:.0%} of the variance of runs that it has not seen"
    if runs < RUNS_PER_PARAMETER * parameters:
        return f"{sure}, but there are few runs for {parameters} parameters."
    return f"{sure}."
