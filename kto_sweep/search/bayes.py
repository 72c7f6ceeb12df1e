"""Bayesian search: fits a Gaussian process to the trials so far and suggests the most promising point.

The process is Optuna's GPSampler, on the unit cube of each parameter's cumulative probability: Matérn 5/2, a
length scale per axis, log expected improvement over the joint distribution with the pending trials. With
several objectives there is one process each, and the improvement is in the hypervolume of their Pareto front.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from kto_sweep.search.axes import Axis, Cube, Levels, Point, cube_of
from kto_sweep.search.distributions import Value
from kto_sweep.search.objectives import pareto_front
from kto_sweep.search.space import Space
from kto_sweep.search.space_parser import parse_space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

START_TRIALS = 4
"""Trials of the quasi-random start. With several agents it lasts until there are as many losses as axes or as
START_TRIALS: the process fits a length scale per axis, and with fewer losses it suggests corners."""
EDGE_SHARE = 0.5
"""With n losses, the process suggests no point closer to an end of a scale than this share of 1 / (n + 1).
Its uncertainty is largest at the ends, which are seldom best, so it would spend its first trials there. If
the best trial so far is near an end, points up to halfway between it and that end are allowed."""
MAX_LISTED = 10_000
"""A space of at most this many configurations is listed to find untried ones; a larger one is sampled."""
MAX_OBSERVED = 300
"""Maximum number of trials to fit; the cost is cubic in their number."""


PointLosses: TypeAlias = tuple[Point, tuple[float, ...]]
"""A trial's point and its losses, one per objective."""


@dataclass(frozen=True)
class Observation:
    """A trial that has run or is running."""

    config: Mapping[str, Any]
    value: float | None
    """Value of the metric; None: not yet, or never."""
    pending: bool = False
    """The trial is running and has no final value."""
    costs: tuple[float, ...] = ()
    """Losses of the other objectives, lower is better; the same number for each trial with a value."""


def next_config(
    space: Space, observations: Sequence[Observation], *, maximize: bool = False, seed: int
) -> dict[str, Value]:
    """The nested configuration to try next; deterministic.

    `seed` belongs to the sweep, not to the trial: all start points are one sequence.
    A configuration is repeated only if none is left untried.
    """
    cube = cube_of(space)
    if not cube.axes:
        return cube.config(())
    points = [(point, o) for o in observations if (point := cube.point(o.config)) is not None]
    sign = -1.0 if maximize else 1.0
    losses = [
        (point, (sign * o.value, *o.costs))
        for point, o in points
        if o.value is not None and all(map(math.isfinite, (o.value, *o.costs)))
    ]
    pending = [point for point, o in points if o.pending and o.value is None]
    rng = random.Random(f"{seed} {len(observations)}")
    enough = min(max(len(cube.axes), 2), START_TRIALS)
    if len(losses) < enough or len(losses) + len(pending) < START_TRIALS:
        suggested = _start_point(len(cube.axes), len(observations), seed)
    else:
        suggested = _improving_point(cube, losses, pending, rng)
    return cube.config(_untried(cube, suggested, [point for point, _ in points], rng))


def warm_up() -> None:
    """Import all lazily loaded libraries, which takes seconds, by running the search on two small spaces."""
    axes = {"x": {"min": 0.0, "max": 1.0}, "n": {"values": [1, 2, 3]}}
    space, _ = parse_space(axes)
    assert space is not None
    seen = [Observation({"x": coordinate / 8, "n": 1}, coordinate) for coordinate in range(START_TRIALS)]
    for observations in ([], [*seen, Observation({"x": 0.9, "n": 2}, None, pending=True)]):
        next_config(space, observations, seed=0)


def _start_point(dimensions: int, number: int, seed: int) -> Point:
    """Point `number` of a scrambled Sobol sequence."""
    from scipy.stats import qmc

    engine = qmc.Sobol(dimensions, scramble=True, rng=seed)
    if number:  # fast_forward(0) overflows
        engine.fast_forward(number)
    return tuple(float(x) for x in engine.random(1)[0])


def _improving_point(
    cube: Cube, losses: Sequence[PointLosses], pending: Sequence[Point], rng: random.Random
) -> Point:
    """The point of greatest expected improvement, given the pending points."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {str(number): _distribution(axis) for number, axis in enumerate(cube.axes)}
    sampler = optuna.samplers.GPSampler(seed=rng.getrandbits(31), n_startup_trials=1)
    study = optuna.create_study(sampler=sampler, directions=["minimize"] * len(losses[0][1]))
    chosen = _subset(losses, rng)
    scaled = zip(*map(_scaled, zip(*(loss for _, loss in chosen), strict=True)), strict=True)
    for (point, _), values in zip(chosen, scaled, strict=True):
        study.add_trial(create_trial(params=_params(cube, point), distributions=space, values=values))
    best = [chosen[index][0] for index in pareto_front([loss for _, loss in chosen])]
    reach = [(min(axis), max(axis)) for axis in zip(*best, strict=True)]
    margin = EDGE_SHARE / (len(chosen) + 1)
    for point in pending:
        # Show a point that was moved off an end as the end, or the process would suggest that end again.
        shown = _snapped_to_ends(cube, point, reach, margin)
        study.add_trial(
            create_trial(params=_params(cube, shown), distributions=space, state=TrialState.RUNNING)
        )
    params = study.ask(space).params
    return tuple(
        _coordinate(axis, params[str(number)], _allowed(*reach[number], margin))
        for number, axis in enumerate(cube.axes)
    )


def _distribution(axis: Axis) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(axis, Levels):
        return FloatDistribution(0, 1)
    last = len(axis.values) - 1
    return IntDistribution(0, last) if axis.ordered else CategoricalDistribution(range(last + 1))


def _params(cube: Cube, point: Point) -> dict[str, float]:
    return {
        str(number): axis.level(coordinate) if isinstance(axis, Levels) else coordinate
        for number, (axis, coordinate) in enumerate(zip(cube.axes, point, strict=True))
    }


def _allowed(lowest: float, highest: float, margin: float) -> tuple[float, float]:
    """The allowed part of a scale, given the range of the best trials on it."""
    return min(margin, lowest / 2), 1 - min(margin, (1 - highest) / 2)


def _coordinate(axis: Axis, param: float, allowed: tuple[float, float]) -> float:
    return axis.middle(int(param)) if isinstance(axis, Levels) else min(max(param, allowed[0]), allowed[1])


def _snapped_to_ends(cube: Cube, point: Point, reach: Sequence[tuple[float, float]], margin: float) -> Point:
    """The point, moved to the end of each scale on which it lies within the margin."""
    moved = []
    for axis, coordinate, ends in zip(cube.axes, point, reach, strict=True):
        low, high = _allowed(*ends, margin)
        moved.append(
            coordinate if isinstance(axis, Levels) or low < coordinate < high else float(round(coordinate))
        )
    return tuple(moved)


def _subset(losses: Sequence[PointLosses], rng: random.Random) -> Sequence[PointLosses]:
    """All losses; if too many, the best MAX_OBSERVED / 2 and a sample of the others.

    With several objectives, the Pareto front is best, then the first objective decides.
    """
    if len(losses) <= MAX_OBSERVED:
        return losses
    front = set(pareto_front([loss for _, loss in losses]))
    order = sorted(range(len(losses)), key=lambda index: (index not in front, losses[index][1]))
    ranked = [losses[index] for index in order]
    half = MAX_OBSERVED // 2
    return ranked[:half] + rng.sample(ranked[half:], MAX_OBSERVED - half)


def _scaled(losses: Sequence[float]) -> list[float]:
    """The losses on a scale where the best is 0 and the median 1, clipped at 3.

    Without scaling, the loss of a diverged trial, measured or imputed, would make all other differences
    too small for the process to see.
    """
    ranked = sorted(losses)
    best = ranked[0]
    # If half of them tie with the best, use the first worse one instead of the median.
    other = next((loss for loss in ranked[len(ranked) // 2 :] if loss > best), None)
    if other is None:
        return [0.0] * len(losses)
    scale = other / 2 - best / 2  # halved, because the difference of two floats can overflow
    return [min((loss / 2 - best / 2) / scale, 3.0) for loss in losses]


def _untried(cube: Cube, suggested: Point, tried: Sequence[Point], rng: random.Random) -> Point:
    """`suggested`, or the nearest untried point if its configuration has been tried."""
    keys = {cube.key(point) for point in tried}
    if cube.key(suggested) not in keys:
        return suggested
    candidates = cube.points(MAX_LISTED)
    if candidates is None:
        candidates = (tuple(rng.random() for _ in cube.axes) for _ in range(MAX_LISTED // 10))
    others = [point for point in candidates if cube.key(point) not in keys]
    return min(others, key=lambda point: math.dist(point, suggested), default=suggested)
