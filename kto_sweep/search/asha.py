"""Asynchronous successive halving: runs pause at bands, and the best of those that got there go on.

Bands count iterations, as hyperband's do. A run that reaches one goes on at once if it is among the best
1/eta of all runs that have reached it by then; else it pauses, until it is, as others arrive.
When the search has nothing new to try, at least one goes on from each band: so even a sweep of few trials
trains one to its end.
After Li et al., A System for Massively Parallel Hyperparameter Tuning (2020), https://arxiv.org/abs/1810.05934.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kto_sweep.search.hyperband import parse_bands

KEYS = ("min_iter", "max_iter", "s", "eta")

Standings = Sequence[tuple[int, float]]
"""Number and value of each run that has reached a band, the value being the one it had there."""


@dataclass(frozen=True)
class AshaRule:
    """The `asha` option of a sweep."""

    bands: tuple[int, ...]
    """Iterations at which a run is judged, ascending."""
    eta: float
    """One in `eta` of the runs at a band goes on."""


def parse_asha(section: Mapping[str, Any], name: str) -> AshaRule:
    """The rule of a section of that name. Raises ValueError, saying which key is wrong."""
    unknown = [str(key) for key in section if key not in KEYS]
    if unknown:
        raise ValueError(f"{name}.{unknown[0]}: the keys are {', '.join(KEYS)}")
    return AshaRule(*parse_bands(section, name))


def best(standings: Standings, eta: float, *, maximize: bool = False, least: int = 0) -> list[int]:
    """The runs among the best 1/eta, `least` in any case, best first; of equal ones the lower number's."""
    sign = -1.0 if maximize else 1.0
    ranked = sorted(standings, key=lambda standing: (sign * standing[1], standing[0]))
    return [run for run, _ in ranked[: max(least, int(len(ranked) / eta))]]


def judge(
    rule: AshaRule,
    run: int,
    passed: int,
    reached: int,
    standings_at: Callable[[int], Standings],
    *,
    maximize: bool = False,
    least: int = 0,
) -> tuple[int, bool]:
    """The band that a run has come to, and whether it pauses there.

    `passed` is the last band at which it was judged (0: none), `reached` its number of iterations: rows may
    come in batches larger than the bands are apart. `standings_at(band)` includes the run itself; `least`
    runs of a band go on in any case.
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
    """Those of the paused runs (with their bands) that may go on: from the highest band, the best first.

    `least` runs of a band go on in any case.
    """
    bands: Iterable[int] = sorted(set(paused.values()), reverse=True)
    return [
        run
        for band in bands
        for run in best(standings_at(band), rule.eta, maximize=maximize, least=least)
        if paused.get(run) == band
    ]
