"""Bayesian search: a Gaussian process of what was observed, and the point of greatest expected improvement.

The process is Optuna's (GPSampler: Matérn 5/2, a length scale per axis, log expected improvement, over its
joint distribution with the pending trials; with several objectives one process each, and improvement is
in the volume that their Pareto front covers), on the unit cube of each parameter's cumulative probability.
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

START = 4
"""Trials of the quasi-random start. Several agents go on with it until there are as many losses as axes, or
so many: the process learns a length for each axis, and with fewer losses it seeks the corners."""
EDGE = 0.5
"""With n losses known, no trial that the process chooses lies nearer to an end of a scale than this share of
1 / (n + 1): it knows least of the ends, which seldom hold the best value, and would spend its first trials
there. Where the best trial so far lies near an end, the others may go half way from it to that end."""
MOST_LISTED = 10_000
"""Configurations of a space that is listed to find those not tried; a larger one is sampled."""
MOST_OBSERVED = 300
"""Values the process is fitted to; its cost grows with their third power."""


Seen: TypeAlias = tuple[Point, tuple[float, ...]]
"""Where a trial lies, and its losses, one for each objective."""


@dataclass(frozen=True)
class Observation:
    """A trial that was tried, or is being tried."""

    config: Mapping[str, Any]
    value: float | None
    """Of the metric. None: not yet known, or never."""
    pending: bool = False
    """The trial is under way; a value of its own is yet to come."""
    costs: tuple[float, ...] = ()
    """With several objectives the others, the less the better; as many for each trial with a value."""


def next_config(
    space: Space, observations: Sequence[Observation], *, maximize: bool = False, seed: int
) -> dict[str, Value]:
    """The nested configuration to try next; the same one for the same arguments.

    `seed` belongs to the sweep, not to the trial: the points of the start are one sequence.
    Configurations are repeated only once a space has no other left.
    """
    cube = cube_of(space)
    if not cube.axes:
        return cube.config(())
    placed = [(point, o) for o in observations if (point := cube.point(o.config)) is not None]
    sign = -1.0 if maximize else 1.0
    losses = [
        (point, (sign * o.value, *o.costs))
        for point, o in placed
        if o.value is not None and all(map(math.isfinite, (o.value, *o.costs)))
    ]
    pending = [point for point, o in placed if o.pending and o.value is None]
    rng = random.Random(f"{seed} {len(observations)}")
    enough = min(max(len(cube.axes), 2), START)
    if len(losses) < enough or len(losses) + len(pending) < START:
        wanted = _start_point(len(cube.axes), len(observations), seed)
    else:
        wanted = _improving_point(cube, losses, pending, rng)
    return cube.config(_untried(cube, wanted, [point for point, _ in placed], rng))


def load() -> None:
    """Import all that the search needs, which takes seconds, by asking it two small questions."""
    axes = {"x": {"min": 0.0, "max": 1.0}, "n": {"values": [1, 2, 3]}}
    space, _ = parse_space(axes)
    assert space is not None
    seen = [Observation({"x": place / 8, "n": 1}, place) for place in range(START)]
    for known in ([], [*seen, Observation({"x": 0.9, "n": 2}, None, pending=True)]):
        next_config(space, known, seed=0)


def _start_point(dimensions: int, number: int, seed: int) -> Point:
    """Point `number` of a scrambled Sobol sequence."""
    from scipy.stats import qmc

    engine = qmc.Sobol(dimensions, scramble=True, rng=seed)
    if number:  # to go forward by nothing is an overflow there
        engine.fast_forward(number)
    return tuple(float(x) for x in engine.random(1)[0])


def _improving_point(
    cube: Cube, losses: Sequence[Seen], pending: Sequence[Point], rng: random.Random
) -> Point:
    """Where the losses are expected to improve most, given that the pending points will be known too."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {str(number): _distribution(axis) for number, axis in enumerate(cube.axes)}
    sampler = optuna.samplers.GPSampler(seed=rng.getrandbits(31), n_startup_trials=1)
    study = optuna.create_study(sampler=sampler, directions=["minimize"] * len(losses[0][1]))
    chosen = _most_telling(losses, rng)
    tamed = zip(*map(_tamed, zip(*(loss for _, loss in chosen), strict=True)), strict=True)
    for (point, _), values in zip(chosen, tamed, strict=True):
        study.add_trial(create_trial(params=_params(cube, point), distributions=space, values=values))
    best = [chosen[place][0] for place in pareto_front([loss for _, loss in chosen])]
    reach = [(min(axis), max(axis)) for axis in zip(*best, strict=True)]
    margin = EDGE / (len(chosen) + 1)
    for point in pending:
        # One that was kept off an end stands for the end, which would be asked for again and again otherwise.
        shown = _at_ends(cube, point, reach, margin)
        study.add_trial(
            create_trial(params=_params(cube, shown), distributions=space, state=TrialState.RUNNING)
        )
    found = study.ask(space).params
    return tuple(
        _coordinate(axis, found[str(number)], _inside(*reach[number], margin))
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
        str(number): axis.level(place) if isinstance(axis, Levels) else place
        for number, (axis, place) in enumerate(zip(cube.axes, point, strict=True))
    }


def _inside(lowest: float, highest: float, margin: float) -> tuple[float, float]:
    """What is left of a scale when its ends are kept free, given between where the best trials lie."""
    return min(margin, lowest / 2), 1 - min(margin, (1 - highest) / 2)


def _coordinate(axis: Axis, param: float, inside: tuple[float, float]) -> float:
    return axis.middle(int(param)) if isinstance(axis, Levels) else min(max(param, inside[0]), inside[1])


def _at_ends(cube: Cube, point: Point, reach: Sequence[tuple[float, float]], margin: float) -> Point:
    """The point, moved to the ends of those scales whose ends are no further away than what is kept free."""
    moved = []
    for axis, place, ends in zip(cube.axes, point, reach, strict=True):
        low, high = _inside(*ends, margin)
        moved.append(place if isinstance(axis, Levels) or low < place < high else float(round(place)))
    return tuple(moved)


def _most_telling(losses: Sequence[Seen], rng: random.Random) -> Sequence[Seen]:
    """All, or if they are too many the better half of those allowed and a sample of the others.

    Of several objectives the Pareto front is the best, then the first one counts.
    """
    if len(losses) <= MOST_OBSERVED:
        return losses
    front = set(pareto_front([loss for _, loss in losses]))
    order = sorted(range(len(losses)), key=lambda place: (place not in front, losses[place][1]))
    ranked = [losses[place] for place in order]
    half = MOST_OBSERVED // 2
    return ranked[:half] + rng.sample(ranked[half:], MOST_OBSERVED - half)


def _tamed(losses: Sequence[float]) -> list[float]:
    """The losses between 0 for the best and 1 for the median, and 3 at most.

    A trial that diverged says where not to search. Its own number, be it an imputed one, would make all other
    differences too small for the process to see.
    """
    ranked = sorted(losses)
    best = ranked[0]
    # Where half of them are equally good, the first that is not takes the median's place.
    other = next((loss for loss in ranked[len(ranked) // 2 :] if loss > best), None)
    if other is None:
        return [0.0] * len(losses)
    scale = other / 2 - best / 2  # halved, for the difference of two numbers can be more than a number can be
    return [min((loss / 2 - best / 2) / scale, 3.0) for loss in losses]


def _untried(cube: Cube, wanted: Point, tried: Sequence[Point], rng: random.Random) -> Point:
    """`wanted`, or if its configuration was tried the nearest one that was not."""
    keys = {cube.key(point) for point in tried}
    if cube.key(wanted) not in keys:
        return wanted
    everything = cube.points(MOST_LISTED)
    if everything is None:
        everything = (tuple(rng.random() for _ in cube.axes) for _ in range(MOST_LISTED // 10))
    others = [point for point in everything if cube.key(point) not in keys]
    return min(others, key=lambda point: math.dist(point, wanted), default=wanted)
