"""Parameter importance for a metric, as on W&B: a random forest's importance, and the correlation.

A pure function of plain values. Imports scikit-learn only when called.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

MIN_RUNS = 8
"""Minimum number of runs with a value; with fewer, the result would be noise."""
RUNS_PER_PARAMETER = 3
"""With fewer runs per parameter, the note adds a caution."""
TREES = 200
RANDOM_STATE = 0
LOG_RATIO = 50.0
"""Positive values with a larger ratio of maximum to minimum use a log scale."""


@dataclass(frozen=True)
class ParameterImportance:
    """The importance of one parameter."""

    name: str
    importance: float
    """Share of the forest's impurity decrease; all shares sum to 1."""
    correlation: float | None
    """Pearson correlation with the metric, -1 to 1; None for a categorical parameter."""


@dataclass(frozen=True)
class ImportanceTable:
    """All parameters, most important first."""

    rows: tuple[ParameterImportance, ...]
    """Empty with too few runs."""
    note: str
    """One sentence: how reliable the rows are, or why there are none."""


def parameter_importance(
    names: Sequence[str],
    configs: Sequence[Mapping[str, Any]],
    values: Sequence[float | None],
    groups: Sequence[str] = (),
) -> ImportanceTable:
    """The importance of the named parameters; `values` is each run's metric, None without one.

    `groups` has the eval_groups group of each run; only the largest is used, because values of others do not
    compare. Configurations have dotted names. Numbers that span orders of magnitude use a log scale. Other
    values are categories, one-hot encoded; a parameter's importance is the sum over its columns.
    """
    kept = [i for i, value in enumerate(values) if value is not None and math.isfinite(value)]
    sizes = Counter(groups[i] for i in kept if groups)
    group = sizes.most_common(1)[0][0] if sizes else ""
    kept = [i for i in kept if not groups or groups[i] == group]
    where = f"Of the runs judged on {group}: " if group else ""
    target = np.array([values[i] for i in kept], dtype=np.float64)
    encoded = {name: _encode([configs[i].get(name) for i in kept]) for name in names}
    encoded = {name: columns for name, columns in encoded.items() if columns}
    if len(kept) < MIN_RUNS:
        return ImportanceTable((), f"{where}Needs {MIN_RUNS} finished runs; {len(kept)} so far.")
    if not encoded or np.ptp(target) == 0:
        return ImportanceTable((), f"{where}All runs have the same parameters or the same value.")
    shares, score = _forest(encoded, target)
    rows = [
        ParameterImportance(name, share, _correlation(columns, target))
        for (name, columns), share in zip(encoded.items(), shares, strict=True)
    ]
    rows.sort(key=lambda row: -row.importance)
    return ImportanceTable(tuple(rows), where + _note(len(kept), len(encoded), score))


def _encode(values: Sequence[Any]) -> list[FloatArray]:
    """Columns of shape (runs,): one of numbers, or one for each category. Empty if all values are equal."""
    numbers = [_number(value) for value in values]
    if all(number is not None for number in numbers):
        column = np.array(numbers, dtype=np.float64)
        if len(column) == 0 or np.ptp(column) == 0:
            return []
        if column.min() > 0 and column.max() / column.min() >= LOG_RATIO:
            column = np.log(column)
        return [column]
    texts = [str(value) for value in values]
    categories = sorted(set(texts))
    if len(categories) < 2:
        return []
    return [np.array([text == category for text in texts], dtype=np.float64) for category in categories]


def _number(value: object) -> float | None:
    """The value as a number, also from a string, because YAML reads 5e-7 as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _forest(encoded: Mapping[str, list[FloatArray]], target: FloatArray) -> tuple[list[float], float]:
    """Each parameter's share, and the forest's out-of-bag R2, which is measured on unseen runs."""
    from sklearn.ensemble import RandomForestRegressor

    table = np.column_stack([column for columns in encoded.values() for column in columns])
    forest = RandomForestRegressor(
        n_estimators=TREES, min_samples_leaf=2, oob_score=True, random_state=RANDOM_STATE
    )
    forest.fit(table, target)
    ends = np.cumsum([len(columns) for columns in encoded.values()])
    shares = [float(part.sum()) for part in np.split(forest.feature_importances_, ends[:-1])]
    return shares, float(forest.oob_score_)


def _correlation(columns: list[FloatArray], target: FloatArray) -> float | None:
    if len(columns) > 1:
        return None
    return float(np.corrcoef(columns[0], target)[0, 1])


def _note(runs: int, parameters: int, score: float) -> str:
    if score <= 0:
        return f"From {runs} runs; a random forest cannot predict one from the others, so this is a guess."
    note = f"From {runs} runs; a random forest explains {score:.0%} of the variance of unseen runs"
    if runs < RUNS_PER_PARAMETER * parameters:
        return f"{note}, but {runs} runs are few for {parameters} parameters."
    return f"{note}."
