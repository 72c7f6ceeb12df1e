"""Parameter importance for a metric: shares from a random forest on ranks, and where each parameter is best.

A pure function of plain values. Imports scikit-learn only when called.

Ranks, because on values one exploded run decides everything. Permutation of unseen runs, because the impurity
that trees remove prefers parameters with many values, also when these do nothing.
benchmarks/importance_simulation.py measures both on sweeps with a known truth.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kto_sweep.compare.best_region import BestRegion, Effect, best_region
from kto_sweep.search.distributions import value_key
from kto_sweep.search.space import own_name
from kto_sweep.text import counted, is_number, number_from_text

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestRegressor

FloatArray = NDArray[np.float64]
Columns = Sequence[NDArray[np.int64]]
"""For each parameter the numbers of its columns in the table."""

MIN_RUNS = 8
"""Minimum number of runs; with fewer, the result would be noise."""
RUNS_PER_PARAMETER = 3
"""With fewer runs per parameter, the note adds a caution."""
MAX_RUNS = 2000
"""Of more runs a sample is used: the forest of 50,000 takes a minute, with the same result."""
TREES = 100
RANDOM_STATE = 0
NOISE_SCORE = 4
"""Divided by the number of runs: the out-of-bag R2 that one sweep of pure noise in 20 exceeds."""
MIN_SHARE = 0.05
"""Where a less important parameter is best would be noise."""
MAX_STEPS = 8
"""More distinct numbers are put into so many bins of equally many."""
BACKGROUND = 100
"""Maximum number of runs that an effect is averaged over."""


@dataclass(frozen=True)
class ImportanceRun:
    """One ended run."""

    config: Mapping[str, Any]
    """Dotted name to value: searched parameters without the seed."""
    value: float | None
    """The metric; None without one, and for a run that failed: what it logged before means nothing."""


@dataclass(frozen=True)
class ParameterImportance:
    """The importance of one parameter."""

    name: str
    importance: float
    """Share of the squared error that shuffling the parameters adds on unseen runs; all shares sum to 1."""
    correlation: float | None
    """Spearman's rank correlation with the metric, -1 to 1; None for a category."""
    direction: str
    """`lower is better` or `higher is better`; empty for a category, an inner optimum, or no clear effect."""
    best_region: str
    """The best of the tried values: `2e-06 to 8e-06`, `16 or 32`; empty without a clear effect."""
    sentence: str
    """Share and best region."""


@dataclass(frozen=True)
class ImportanceTable:
    """All parameters, most important first."""

    rows: tuple[ParameterImportance, ...]
    """Empty with too few runs, and if the parameters predict nothing."""
    note: str
    """One sentence: from which runs, and how reliable the rows are; or why there are none."""


@dataclass(frozen=True)
class _Parameter:
    """A parameter that differs between runs, encoded for the forest."""

    name: str
    table: FloatArray
    """(runs, 1): position among the distinct numbers, nan if missing; or (runs, categories): one-hot."""
    labels: tuple[Any, ...]
    """The distinct values: numbers ascending, or categories."""
    is_category: bool


def parameter_importance(
    names: Sequence[str], runs: Sequence[ImportanceRun], *, maximize: bool
) -> ImportanceTable:
    """The importance of the named parameters for the metric; does not depend on the order of names or runs.

    Numbers count by their order, so that a log scale changes nothing; a parameter with values that are no
    numbers is a category. Runs without a finite value are left out.
    """
    used = [run for run in runs if is_number(run.value)]
    if len(used) < MIN_RUNS:
        return ImportanceTable((), f"Needs {MIN_RUNS} finished runs; {len(used)} so far.")
    valued, used = len(used), _sample(used)
    losses = np.array([run.value for run in used], dtype=np.float64) * (-1 if maximize else 1)
    encoded = [_encode(name, [run.config.get(name) for run in used]) for name in sorted(set(names))]
    parameters = [parameter for parameter in encoded if parameter is not None]
    if not parameters or losses.min() == losses.max():
        return ImportanceTable((), "All runs have the same parameters or the same value.")
    table = np.column_stack([parameter.table for parameter in parameters])
    # The bootstrap draws rows by number, so their order must follow from their contents.
    order = np.lexsort((losses, *table.T))
    table, ranks = table[order], _ranks(losses[order])
    widths = [parameter.table.shape[1] for parameter in parameters]
    columns = np.split(np.arange(sum(widths)), np.cumsum(widths)[:-1])
    forest = _fit(table, ranks)
    added = _permutation_importance(forest, table, ranks, columns)
    origin = _origin(len(runs), valued, len(used))
    if forest.oob_score_ <= NOISE_SCORE / len(used) or not added.any():
        nothing = "the parameters predict nothing about the metric: none matters more than seed noise"
        return ImportanceTable((), f"{origin}, {nothing}.")
    rows = [
        _row(parameter.name, float(share), effect, _correlation(table[:, own], ranks, maximize))
        for parameter, share, effect, own in zip(
            parameters,
            added / added.sum(),
            _effects(forest, table, parameters, columns),
            columns,
            strict=True,
        )
    ]
    rows.sort(key=lambda row: -row.importance)
    note = f"{origin}; a random forest explains {forest.oob_score_:.0%} of the variance of unseen runs' ranks"
    if len(used) < RUNS_PER_PARAMETER * len(parameters):
        note += f", but {len(used)} runs are few for {len(parameters)} parameters"
    return ImportanceTable(tuple(rows), f"{note}.")


def _sample(runs: list[ImportanceRun]) -> list[ImportanceRun]:
    """At most MAX_RUNS of the runs, the same on every call: one at random of each stretch of ranks."""
    if len(runs) <= MAX_RUNS:
        return runs
    # The order must follow from the contents, not from that of the runs.
    ordered = sorted(runs, key=lambda run: (run.value or 0.0, repr(sorted(run.config.items()))))
    ends = np.linspace(0, len(ordered), MAX_RUNS + 1).astype(int)
    return [ordered[at] for at in np.random.default_rng(RANDOM_STATE).integers(ends[:-1], ends[1:])]


def _origin(runs: int, valued: int, used: int) -> str:
    """From which runs the result is."""
    sample = f"From a sample of {used:,} of {counted(valued, 'run')}"
    origin = sample if used < valued else f"From {counted(used, 'run')}"
    return f"{origin}, without {runs - valued:,} that failed or have no value" if runs > valued else origin


def _encode(name: str, values: Sequence[Any]) -> _Parameter | None:
    """The parameter; None if all values are equal."""
    numbers = [math.nan if value is None else _number(value) for value in values]
    column = np.array(numbers, dtype=np.float64)  # what is no number becomes nan
    present = ~np.isnan(column)
    if None not in numbers and present.any():
        distinct, positions = np.unique(column[present], return_inverse=True)
        column[present] = positions
        labels = tuple(int(x) if x.is_integer() else x for x in distinct.tolist())
        is_constant = len(labels) == 1 and bool(present.all())
        return None if is_constant else _Parameter(name, column[:, None], labels, is_category=False)
    keys = [value_key(value) for value in values]
    by_key = dict(zip(keys, values, strict=True))
    categories = sorted(by_key, key=repr)
    one_hot = np.array([[key == category for category in categories] for key in keys], dtype=np.float64)
    labels = tuple(by_key[category] for category in categories)
    return None if len(labels) == 1 else _Parameter(name, one_hot, labels, is_category=True)


def _number(value: object) -> float | None:
    """The value as a number, also from text, because YAML reads 5e-7 as text."""
    if isinstance(value, str):
        value = number_from_text(value)
    return float(value) if is_number(value) else None


def _ranks(losses: FloatArray) -> FloatArray:
    """Ranks between 0 (best) and 1 (worst); ties share their mean."""
    from scipy.stats import rankdata

    return np.asarray((rankdata(losses) - 0.5) / len(losses))


def _fit(table: FloatArray, ranks: FloatArray) -> "RandomForestRegressor":
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(TREES, oob_score=True, random_state=RANDOM_STATE).fit(table, ranks)


def _permutation_importance(
    forest: "RandomForestRegressor", table: FloatArray, ranks: FloatArray, columns: Columns
) -> FloatArray:
    """For each parameter the squared error, at least 0, that shuffling it adds on each tree's unseen runs."""
    rng = np.random.default_rng(RANDOM_STATE)
    added = np.zeros(len(columns))
    for tree, drawn in zip(forest.estimators_, forest.estimators_samples_, strict=True):
        unseen = np.setdiff1d(np.arange(len(table)), drawn)
        if len(unseen) == 0:  # about one tree in 400, with 8 runs
            continue
        # (1 + parameters, unseen runs, columns): unchanged, then each parameter shuffled. One call is faster.
        copies = np.repeat(table[None, unseen].astype(np.float32), 1 + len(columns), axis=0)
        for copy, own in zip(copies[1:], columns, strict=True):
            copy[:, own] = copy[rng.permutation(len(unseen))][:, own]
        predicted = tree.predict(copies.reshape(-1, table.shape[1]), check_input=False).reshape(
            len(copies), -1
        )
        errors = np.sum((predicted - ranks[unseen]) ** 2, axis=1)
        added += errors[1:] - errors[0]
    return np.maximum(added, 0)


def _effects(
    forest: "RandomForestRegressor", table: FloatArray, parameters: Sequence[_Parameter], columns: Columns
) -> Iterator[Effect]:
    """The effect of each parameter: the forest's mean prediction with all runs set to one value."""
    background = table[np.unique(np.linspace(0, len(table) - 1, BACKGROUND).astype(int))]
    for parameter, own in zip(parameters, columns, strict=True):
        count = len(parameter.labels)
        steps = np.array_split(np.arange(count), count if parameter.is_category else min(count, MAX_STEPS))
        points = np.eye(count) if parameter.is_category else np.array([[np.median(step)] for step in steps])
        copies = np.repeat(background[None], len(points), axis=0)
        copies[:, :, own] = points[:, None]
        predicted = forest.predict(copies.reshape(-1, table.shape[1])).reshape(len(points), -1)
        labels = [[parameter.labels[at] for at in step] for step in steps]
        is_list = len(steps) == count <= len(table) / 2
        yield Effect(labels, predicted.mean(axis=1), parameter.is_category, is_list)


def _correlation(table: FloatArray, ranks: FloatArray, maximize: bool) -> float | None:
    """Spearman's, with the metric itself; None for a category, or if no two of its numbers differ."""
    from scipy.stats import rankdata

    present = ~np.isnan(table[:, 0])
    if table.shape[1] > 1 or np.ptp(table[present]) == 0 or np.ptp(ranks[present]) == 0:
        return None
    found = float(np.corrcoef(rankdata(table[present, 0]), rankdata(ranks[present]))[0, 1])
    return -found if maximize else found


def _row(name: str, share: float, effect: Effect, correlation: float | None) -> ParameterImportance:
    is_clear = share >= MIN_SHARE and np.ptp(effect.ranks) > 0
    best = best_region(effect) if is_clear else BestRegion("", "", "no clear effect")
    sentence = f"{own_name(name)}: {share:.0%} of the importance; {best.phrase}."
    return ParameterImportance(name, share, correlation, best.direction, best.region, sentence)
