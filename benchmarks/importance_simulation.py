"""How well estimators of parameter importance find a known truth, with and without diverged trials.

    python benchmarks/importance_simulation.py
    python benchmarks/importance_simulation.py --sweeps 4       # a short one

Simulated sweeps: a random search of six parameters and grids of two to four, with 8, 20 and 50 runs (the
largest grid has 48). Each surface is drawn at random: a bowl in log learning rate, one in log beta, weaker
effects of batch size, loss type and LoRA rank, none of weight decay; half of them with interactions of the
learning rate's optimum. Seed noise is 0.3 of the surface's standard deviation.

The truth is a functional ANOVA of the noise-free surface on ranks: for each parameter the mean of its main
and total effect (its Shapley effect, where no more than two parameters interact), divided by the sum. The
first truth leaves the diverged region out, because who knows that a rate diverges asks what matters below it;
the second has it, tied for the worst, with as much weight as the sweep has diverged runs.
"""

import argparse
import itertools
import math
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from kto_sweep.compare.importance import ImportanceRun, ParameterImportance, parameter_importance

FloatArray = NDArray[np.float64]

LEVELS: dict[str, tuple[Any, ...]] = {
    "batch_size": (8, 16, 32, 64),
    "loss_type": ("kto", "apo"),
    "lora_r": (8, 16, 32, 64),
}
"""Parameters with few values; the others are continuous."""
NAMES = ("learning_rate", "beta", "batch_size", "loss_type", "lora_r", "weight_decay")
NO_EFFECT = "weight_decay"
GRIDS = {
    8: {"learning_rate": 4, NO_EFFECT: 2},
    20: {"learning_rate": 5, "beta": 2, NO_EFFECT: 2},
    50: {"learning_rate": 4, "beta": 3, "batch_size": 2, NO_EFFECT: 2},
}
"""By the number of runs: the number of values of each searched parameter."""
OURS = "kto-sweep"
FAULTS = ("none", "1 diverged", "20 % diverged", "1 outlier")
KINDS = tuple(itertools.product(("random", "grid"), GRIDS, FAULTS))
NOISE = 0.3
"""Standard deviation between seeds, as a share of the surface's."""
NOISE_SWEEPS = 4
"""Sweeps of pure noise for each other one."""
TREES = 100
TRUTH_POINTS = 4096


@dataclass(frozen=True)
class Case:
    """One sweep to simulate."""

    design: str
    """random or grid"""
    runs: int
    fault: str
    number: int
    is_noise: bool = False


@dataclass(frozen=True)
class Sweep:
    """Ended runs. Coordinates are in the unit cube; a learning rate above 1 diverges."""

    names: tuple[str, ...]
    points: FloatArray
    """(runs, searched parameters)"""
    values: FloatArray
    """As logged: diverged runs have saturated or exploded values."""
    diverged: NDArray[np.bool_]

    @property
    def ranks(self) -> FloatArray:
        return np.asarray(rankdata(np.where(self.diverged, np.inf, self.values)))

    @property
    def healthy(self) -> "Sweep":
        kept = ~self.diverged
        return Sweep(self.names, self.points[kept], self.values[kept], self.diverged[kept])


Surface = Callable[[FloatArray], FloatArray]
"""Values of points in the cube of all six parameters; lower is better."""


def _surface(rng: np.random.Generator) -> Surface:
    large = np.exp(rng.uniform(math.log(0.3), math.log(3), 2))
    small = np.exp(rng.uniform(math.log(0.1), math.log(1), 2)) * rng.choice([-1, 1], 2)
    best_rate, best_beta = rng.uniform(0.2, 0.8), rng.uniform(0, 1)
    shift = rng.uniform(-0.5, 0.5, 2) * rng.integers(2)  # none in half of the surfaces
    rank = rng.uniform(-0.2, 0.2)

    def value(points: FloatArray) -> FloatArray:
        rate, beta, batch, loss, lora_r, _ = points.T
        off = rate - best_rate - shift[0] * (beta - 0.5) - shift[1] * (batch - 0.5)
        main = 7 * large[0] * off**2 + 7 * large[1] * (beta - best_beta) ** 2
        return main + 1.7 * small[0] * batch + small[1] * loss + 1.7 * rank * lora_r

    return value


def _draw(rng: np.random.Generator, case: Case, count: int) -> FloatArray:
    """Random healthy points of the searched space; what is not searched is in the middle."""
    points = np.full((count, len(NAMES)), 0.5)
    for at, name in enumerate(NAMES):
        levels = GRIDS[case.runs].get(name, 1) if case.design == "grid" else len(LEVELS.get(name, ()))
        if levels == 0:
            points[:, at] = rng.uniform(size=count)
        elif levels > 1:
            # The highest learning rate of a grid with 20 % diverged runs is not healthy.
            healthy = levels - (case.design == "grid" and at == 0 and case.fault == "20 % diverged")
            points[:, at] = rng.integers(healthy, size=count) / (levels - 1)
    return points


def _sweep(rng: np.random.Generator, case: Case, surface: Surface | None) -> Sweep:
    """The runs of a sweep; `surface` None is pure noise, in which divergence depends on no parameter."""
    if case.design == "grid":
        names = tuple(GRIDS[case.runs])
        axes = [np.arange(levels) / (levels - 1) for levels in GRIDS[case.runs].values()]
        points = np.full((math.prod(map(len, axes)), len(NAMES)), 0.5)
        points[:, [NAMES.index(name) for name in names]] = list(itertools.product(*axes))
    else:
        names, points = NAMES, _draw(rng, case, case.runs)
    diverged = np.zeros(len(points), dtype=bool)
    if "diverged" in case.fault:
        count = 1 if case.fault == "1 diverged" else round(0.2 * len(points))
        if surface is not None and case.design == "random":
            diverged[:count] = True
            points[:count, 0] = rng.uniform(1, 1.25, count)
        elif surface is not None:
            top = np.flatnonzero(points[:, 0] == 1)  # the highest learning rate: 20 to 25 % of the grid
            diverged[top if count > 1 else rng.choice(top)] = True
        else:
            diverged[rng.choice(len(points), count, replace=False)] = True
    values = rng.normal(size=len(points))
    if surface is not None:
        values = surface(points) + NOISE * surface(_draw(rng, case, 1000)).std() * values
    spread, middle = values[~diverged].std(), float(np.median(values[~diverged]))
    for at in np.flatnonzero(diverged):
        exploded = 10 ** rng.uniform(1, 4) if rng.random() < 0.5 else rng.normal()
        values[at] = middle + spread * exploded
    if case.fault == "1 outlier":  # a finished run, anywhere
        values[rng.integers(len(values))] += spread * 10 ** rng.uniform(1, 3)
    return Sweep(names, points[:, [NAMES.index(name) for name in names]], values, diverged)


def _truth(
    rng: np.random.Generator, case: Case, surface: Surface, sweep: Sweep, diverged: float
) -> FloatArray:
    """The true share of each searched parameter, if a share `diverged` of the learning rates diverges."""
    one, other = _draw(rng, case, TRUTH_POINTS), _draw(rng, case, TRUTH_POINTS)
    for points in (one, other):
        points[rng.random(TRUTH_POINTS) < diverged, 0] = 2
    ordered = np.sort(_losses(surface, one))

    def quantile(points: FloatArray) -> FloatArray:
        losses = _losses(surface, points)
        below, up_to = (np.searchsorted(ordered, losses, side) for side in ("left", "right"))
        return np.asarray((below + up_to) / 2 / TRUTH_POINTS)

    first, second = quantile(one), quantile(other)
    effects = []
    for name in sweep.names:
        mixed = one.copy()
        mixed[:, NAMES.index(name)] = other[:, NAMES.index(name)]
        third = quantile(mixed)
        # Jansen's estimators of the variance that the parameter has a part in, and that it has alone.
        total = np.mean((first - third) ** 2) / 2
        main = first.var() - np.mean((second - third) ** 2) / 2
        effects.append(max(total + main, 0.0))
    return _shares(effects)


def _losses(surface: Surface, points: FloatArray) -> FloatArray:
    return np.where(points[:, 0] > 1, np.inf, surface(points))


def _shares(effects: Sequence[float] | FloatArray) -> FloatArray:
    """Effects divided by their sum; equal shares if there is none."""
    kept = np.maximum(np.nan_to_num(np.asarray(effects, dtype=np.float64)), 0)
    return kept / kept.sum() if kept.sum() > 0 else np.full(len(kept), 1 / len(kept))


# Estimators: the shares of a sweep's parameters


def _fit(sweep: Sweep, target: FloatArray, leaf: int) -> Any:
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(TREES, min_samples_leaf=leaf, random_state=0).fit(sweep.points, target)


def _impurity(sweep: Sweep, target: FloatArray) -> FloatArray:
    return np.asarray(_fit(sweep, target, leaf=2).feature_importances_)


def _permutation(sweep: Sweep, target: FloatArray) -> FloatArray:
    """By how much the squared error of each tree on its out-of-bag runs grows when one column is shuffled."""
    forest, rng = _fit(sweep, target, leaf=1), np.random.default_rng(0)
    growth = np.zeros(len(sweep.names))
    for tree, drawn in zip(forest.estimators_, forest.estimators_samples_, strict=True):
        left = np.setdiff1d(np.arange(len(target)), drawn)
        if len(left):
            error = np.sum((tree.predict(sweep.points[left]) - target[left]) ** 2)
            for at in range(len(growth)):
                shuffled = sweep.points[left]
                shuffled[:, at] = rng.permutation(shuffled[:, at])
                growth[at] += np.sum((tree.predict(shuffled) - target[left]) ** 2) - error
    return _shares(growth)


def _optuna(sweep: Sweep, target: FloatArray, evaluator: str) -> FloatArray:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, Any] = {
        name: optuna.distributions.CategoricalDistribution([0.0, 1.0])
        if name == "loss_type"
        else optuna.distributions.FloatDistribution(0, max(1.0, float(column.max())))
        for name, column in zip(sweep.names, sweep.points.T, strict=True)
    }
    study = optuna.create_study()
    for point, value in zip(sweep.points.tolist(), target.tolist(), strict=True):
        params = dict(zip(sweep.names, point, strict=True))
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    importance = optuna.importance
    chosen = (
        importance.FanovaImportanceEvaluator(seed=0)
        if evaluator == "fANOVA"
        else importance.PedAnovaImportanceEvaluator()
    )
    try:
        found = importance.get_param_importances(study, evaluator=chosen)
    except RuntimeError:  # fANOVA: all trees are one leaf
        found = {}
    return _shares([found.get(name, 0.0) for name in sweep.names])


def _ours(sweep: Sweep) -> tuple[ParameterImportance, ...]:
    """kto-sweep's own answer; empty if it is silent."""
    runs = [
        ImportanceRun(
            {name: _value(name, u) for name, u in zip(sweep.names, point, strict=True)},
            None if diverged else value,
        )
        for point, value, diverged in zip(
            sweep.points.tolist(), sweep.values.tolist(), sweep.diverged.tolist(), strict=True
        )
    ]
    return parameter_importance(sweep.names, runs, maximize=False).rows


def _rank_in_region(
    rng: np.random.Generator, case: Case, surface: Surface, rows: Sequence[ParameterImportance]
) -> float:
    """The true mean rank (0 is best, 0.5 chance) in the best region of the most important parameter."""
    if not rows or not rows[0].best_region:
        return math.nan
    at, region = NAMES.index(rows[0].name), rows[0].best_region
    points = _draw(rng, case, TRUTH_POINTS)
    ranks = rankdata(surface(points)) / TRUTH_POINTS
    values = [_value(rows[0].name, u) for u in points[:, at]]
    if " to " in region:
        low, high = map(float, region.split(" to "))  # rounded to two digits
        inside = [0.95 * low <= value <= 1.05 * high for value in values]
    else:
        named = region.replace(" or ", ", ").split(", ")
        inside = [any(text == value or _is_near(text, value) for text in named) for value in values]
    return float(ranks[inside].mean())


def _is_near(text: str, value: Any) -> bool:
    return not isinstance(value, str) and math.isclose(float(text), value, rel_tol=0.05)


def _value(name: str, u: float) -> Any:
    if name in LEVELS:
        return LEVELS[name][round(u * (len(LEVELS[name]) - 1))]
    return 5e-7 * 200**u if name == "learning_rate" else 0.01 * 50**u if name == "beta" else 0.1 * u


ESTIMATORS: dict[str, Callable[[Sweep], FloatArray]] = {
    "forest, impurity, values": lambda sweep: _impurity(sweep, sweep.values),
    "forest, impurity, ranks": lambda sweep: _impurity(sweep, sweep.ranks),
    "forest, permutation, ranks": lambda sweep: _permutation(sweep, sweep.ranks),
    "the same, diverged runs left out": lambda sweep: _permutation(sweep.healthy, sweep.healthy.ranks),
    "fANOVA, values": lambda sweep: _optuna(sweep, sweep.values, "fANOVA"),
    "fANOVA, ranks": lambda sweep: _optuna(sweep, sweep.ranks, "fANOVA"),
    "PED-ANOVA, values": lambda sweep: _optuna(sweep, sweep.values, "PED-ANOVA"),
    "PED-ANOVA, ranks": lambda sweep: _optuna(sweep, sweep.ranks, "PED-ANOVA"),
}


@dataclass(frozen=True)
class Score:
    """One estimator on one sweep; the fields but the first three are nan where it is silent."""

    case: Case
    estimator: str
    silent: bool
    top: float = math.nan
    """1 if the most important parameter is the true one."""
    order: float = math.nan
    """Spearman's correlation with the true shares."""
    error: float = math.nan
    """Half the sum of the differences of shares: 0 to 1."""
    error_with_diverged: float = math.nan
    false_positive: float = math.nan
    """1 if a parameter without effect gets more than 10 %."""
    region: float = math.nan
    """See `_rank_in_region`; kto-sweep only."""


def simulate(case: Case) -> list[Score]:
    """The scores of all estimators on one sweep; of kto-sweep alone on pure noise."""
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(
        [case.number, case.runs, FAULTS.index(case.fault), len(case.design), case.is_noise]
    )
    if case.is_noise:
        return [Score(case, OURS, silent=not _ours(_sweep(rng, case, None)))]
    surface = _surface(rng)
    sweep = _sweep(rng, case, surface)
    truth = _truth(rng, case, surface, sweep, 0)
    share = float(sweep.diverged.mean())
    with_diverged = _truth(rng, case, surface, sweep, share) if share else truth
    rows = _ours(sweep)
    shares = {name: estimate(sweep) for name, estimate in ESTIMATORS.items()}
    if rows:
        ours = {row.name: row.importance for row in rows}
        shares[OURS] = np.array([ours[name] for name in sweep.names])
    scores = [
        Score(
            case,
            name,
            silent=False,
            top=float(own.argmax() == truth.argmax()),
            order=float(spearmanr(own, truth).statistic),
            error=float(np.abs(own - truth).sum() / 2),
            error_with_diverged=float(np.abs(own - with_diverged).sum() / 2),
            false_positive=float(own[sweep.names.index(NO_EFFECT)] > 0.1),
            region=_rank_in_region(rng, case, surface, rows) if name == OURS else math.nan,
        )
        for name, own in shares.items()
    ]
    return scores if rows else [*scores, Score(case, OURS, silent=True)]


MEASURES = ("top", "order", "error", "error_with_diverged", "false_positive")


def _table(scores: Sequence[Score], columns: Mapping[Any, Callable[[Score], Any]]) -> Iterator[str]:
    """Each estimator's means over the scores of a column."""
    yield f"| estimator | {' | '.join(map(str, columns))} |\n|---|{'---|' * len(columns)}"
    for name in (*ESTIMATORS, OURS):
        cells = []
        for column, of in columns.items():
            own = [score for score in scores if score.estimator == name and of(score) == column]
            means = [np.nanmean([getattr(score, measure) for score in own]) for measure in MEASURES]
            cells.append("{:.0%} / {:.2f} / {:.2f} / {:.2f} / {:.0%}".format(*means))
        yield f"| {name} | {' | '.join(cells)} |"


def _silence(scores: Sequence[Score]) -> Iterator[str]:
    """Where kto-sweep is silent, and how good its regions are."""
    yield "| design | runs | fault | silent | rank in best region | pure noise called importance |"
    yield "|---|---:|---|---:|---:|---:|"
    for design, runs, fault in KINDS:
        own = [s for s in scores if (s.case.design, s.case.runs, s.case.fault) == (design, runs, fault)]
        silent = np.mean([score.silent for score in own if not score.case.is_noise])
        called = np.mean([not score.silent for score in own if score.case.is_noise])
        region = np.nanmean([score.region for score in own])
        yield f"| {design} | {runs} | {fault} | {silent:.0%} | {region:.2f} | {called:.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweeps", type=int, default=20, help="sweeps of each of 24 kinds")
    parser.add_argument("--minutes", type=float, default=30, help="begin no further sweeps after this time")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # a process per core
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    begun = time.monotonic()
    scores: list[Score] = []
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for number in range(options.sweeps):
            cases = [Case(*kind, number) for kind in KINDS]
            cases += [
                Case(*kind, NOISE_SWEEPS * number + i, True) for kind in KINDS for i in range(NOISE_SWEEPS)
            ]
            scores += [score for found in pool.map(simulate, cases) for score in found]
            if time.monotonic() > begun + 60 * options.minutes:
                break
    real = [score for score in scores if not score.case.is_noise]
    print(f"{number + 1} sweeps of each kind; {' / '.join(MEASURES)}\n")
    for line in _table(real, dict.fromkeys(FAULTS, lambda score: score.case.fault)):
        print(line)
    print()
    for line in _table(real, dict.fromkeys(GRIDS, lambda score: score.case.runs)):
        print(line)
    print()
    for line in _silence([score for score in scores if score.estimator == OURS]):
        print(line)
    print(f"\n{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
