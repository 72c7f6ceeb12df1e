"""Asynchronous successive halving (ASHA): runs pause at bands, and the best at each band resume.

Bands count iterations, as hyperband's do. A run that reaches a band continues if it is among the best 1/eta
of the runs that have reached it so far. Otherwise it pauses, and resumes once it ranks among the best as more
runs arrive. When the search has nothing new to try, at least one run resumes from each band, so that even a
small sweep trains one trial to its end. After Li et al., A System for Massively Parallel Hyperparameter
Tuning (2020), https://arxiv.org/abs/1810.05934.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kto_sweep.search.hyperband import parse_bands

KEYS = ("min_iter", "max_iter", "s", "eta")

Standings = Sequence[tuple[int, float]]
"""Number of each run that has reached a band, and its metric value there."""


@dataclass(frozen=True)
class AshaRule:
    """The `asha` option of a sweep."""

    bands: tuple[int, ...]
    """Iterations at which runs are compared, ascending."""
    eta: float
    """The best 1/eta of the runs at a band continue."""


def parse_asha(section: Mapping[str, Any], name: str) -> AshaRule:
    """The rule of the section called `name`. Raises ValueError, naming the invalid key."""
    unknown = [str(key) for key in section if key not in KEYS]
    if unknown:
        raise ValueError(f"{name}.{unknown[0]}: the keys are {', '.join(KEYS)}")
    return AshaRule(*parse_bands(section, name))


def best(standings: Standings, eta: float, *, maximize: bool = False, least: int = 0) -> list[int]:
    """The best 1/eta of the runs, at least `least`, best first; ties go to the lower number."""
    sign = -1.0 if maximize else 1.0
    ranked = sorted(standings, key=lambda standing: (sign * standing[1], standing[0]))
    return [run for run, _ in ranked[: max(least, int(len(ranked) / eta))]]


def pauses_at(
    rule: AshaRule,
    run: int,
    passed: int,
    reached: int,
    standings_at: Callable[[int], Standings],
    *,
    maximize: bool = False,
    least: int = 0,
) -> tuple[int, bool]:
    """The last band that a run has reached, and whether it pauses there.

    `passed` is the last band at which it was compared (0: none), `reached` its number of iterations. One
    batch of rows may cross several bands. `standings_at(band)` includes the run itself; at least `least` runs
    of a band continue.
    """
    for band in rule.bands:
        if passed < band <= reached:
            if run not in best(standings_at(band), rule.eta, maximize=maximize, least=least):
                return band, True
            passed = band
    return passed, False


def promotable(
    rule: AshaRule,
    paused: Mapping[int, int],
    standings_at: Callable[[int], Standings],
    *,
    maximize: bool = False,
    least: int = 0,
) -> list[int]:
    """The paused runs that may resume, from the highest band down, best first; `paused` has their bands.

    At least `least` runs of a band continue.
    """
    bands: Iterable[int] = sorted(set(paused.values()), reverse=True)
    return [
        run
        for band in bands
        for run in best(standings_at(band), rule.eta, maximize=maximize, least=least)
        if paused.get(run) == band
    ]
