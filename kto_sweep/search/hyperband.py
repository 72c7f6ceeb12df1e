"""Hyperband early termination as on W&B: at fixed row counts, runs above a quantile stop.

An "iteration" is a history row with a finite value of the sweep's metric. At each band (a number of
iterations) a run is compared with all runs of the sweep that have reached it, itself included; above their
1/eta quantile it stops. Formulas and behaviour follow W&B's `sweeps` package.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from kto_sweep.text import is_number

LARGEST_BAND = 2**31
"""The list of bands ends here; no run logs more rows."""


@dataclass(frozen=True)
class HyperbandRule:
    """The `early_terminate` section of a sweep."""

    bands: tuple[int, ...]
    """Iterations at which runs are compared, ascending."""
    eta: float
    """1/eta of the runs continue, ignoring ties."""
    strict: bool
    """True: compare the value at the band; False: the best value so far."""


def parse_hyperband(section: Mapping[str, Any]) -> HyperbandRule:
    """The rule of an `early_terminate` section. Raises ValueError, naming the invalid key."""
    if section.get("type") != "hyperband":
        raise ValueError(f"early_terminate.type is {section.get('type')!r}; only hyperband is supported")
    strict = section.get("strict", True)
    if not isinstance(strict, bool):
        raise ValueError(f"early_terminate.strict is {strict!r}; write true or false")
    return HyperbandRule(*parse_bands(section, "early_terminate"), strict)


def parse_bands(section: Mapping[str, Any], name: str) -> tuple[tuple[int, ...], float]:
    """Bands and eta of the section called `name`. Raises ValueError, naming the invalid key."""
    eta = section.get("eta", 3)
    if not is_number(eta) or eta <= 1:
        raise ValueError(f"{name}.eta is {eta!r}; it must be above 1")
    bands = _bands(section, eta, name)
    if not bands:
        raise ValueError(f"{name} has no band of 1 iteration or more; raise max_iter")
    return bands, float(eta)


def _bands(section: Mapping[str, Any], eta: float, name: str) -> tuple[int, ...]:
    if "max_iter" in section:
        largest, brackets = section["max_iter"], section.get("s")
        if not is_number(largest) or not 1 <= largest <= LARGEST_BAND:
            raise ValueError(f"{name}.max_iter is {largest!r}; it must be 1 to {LARGEST_BAND}")
        if not isinstance(brackets, int) or isinstance(brackets, bool) or brackets < 1:
            raise ValueError(f"{name}.max_iter needs s, the number of bands (1 or more)")
        bands = (int(largest / eta**k) for k in range(1, min(brackets, 64) + 1))
        return tuple(sorted(set(takewhile(lambda band: band >= 1, bands))))
    if "min_iter" in section:
        smallest = section["min_iter"]
        if not is_number(smallest) or smallest < 1:
            raise ValueError(f"{name}.min_iter is {smallest!r}; it must be 1 or more")
        powers = (smallest * eta**k for k in range(100))
        return tuple(sorted({int(band) for band in takewhile(lambda band: band < LARGEST_BAND, powers)}))
    raise ValueError(f"{name} needs min_iter, or max_iter with s")


def band_reached(rule: HyperbandRule, iterations: int) -> int | None:
    """The largest band within `iterations`; None before the first."""
    return max((band for band in rule.bands if band <= iterations), default=None)


def should_stop(
    rule: HyperbandRule,
    history: Sequence[float],
    values_at: Callable[[int], Sequence[float]],
    *,
    maximize: bool = False,
    judged: int | None = None,
) -> bool:
    """Whether to stop the run with these metric values (one per iteration) now.

    `values_at(band)` gives the metric at iteration `band` of every run that reached it, this one included.
    `judged` is the number of iterations at the last decision: every band since then is checked, as if the
    rows had arrived one at a time. Without it, only the last band is checked.
    """
    last = band_reached(rule, len(history))
    if last is None:
        return False
    sign = -1.0 if maximize else 1.0
    values = [sign * value for value in history]
    bands = {last, *(band for band in rule.bands if judged is not None and judged < band <= last)}
    return any(
        (values[band - 1] if rule.strict else min(values[: band if band < last else None]))
        > threshold(rule, [sign * value for value in values_at(band)])
        for band in bands
    )


def threshold(rule: HyperbandRule, values: Sequence[float]) -> float:
    """The value above which a run stops (lower is better); infinity if there are no values."""
    ranked = sorted(values)
    position = math.floor(len(ranked) / rule.eta)
    return ranked[position] if ranked else math.inf
