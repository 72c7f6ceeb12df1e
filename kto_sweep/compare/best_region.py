"""Which of a parameter's tried values are best, in words, from its effect on the predicted rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kto_sweep.text import number, show

LOWER, HIGHER = "lower is better", "higher is better"
MIN_TREND = 0.5
"""Minimum correlation of a number's steps with their predicted ranks, for a direction."""
MAX_LISTED = 3
"""More of the best numbers are shown as a range."""


@dataclass(frozen=True)
class Effect:
    """The effect of one parameter (partial dependence): a mean predicted rank at each step."""

    steps: Sequence[Sequence[Any]]
    """Tried values: one category, one number, or a bin of numbers; numbers ascend."""
    ranks: NDArray[np.float64]
    """(steps,), lower is better; not all equal."""
    is_category: bool
    is_list: bool
    """The numbers are a few listed ones that runs share, and not drawn from a range."""

    @property
    def good(self) -> NDArray[np.bool_]:
        """The steps nearer to the best one than to the median: a cliff does not make all others good."""
        return np.asarray(self.ranks <= (self.ranks.min() + np.median(self.ranks)) / 2)


@dataclass(frozen=True)
class BestRegion:
    """Where a parameter is best."""

    direction: str
    """LOWER, HIGHER, or empty for a category and for an optimum inside the tried range."""
    region: str
    """`2e-06 to 8e-06`, `16 or 32`"""
    phrase: str
    """`best from 2e-06 to 8e-06, worse above`"""


def best_region(effect: Effect) -> BestRegion:
    """Where the parameter is best."""
    if effect.is_category:
        region = _either([step[0] for step, good in zip(effect.steps, effect.good, strict=True) if good])
        return BestRegion("", region, f"best with {region}")
    first = last = int(effect.ranks.argmin())
    end = len(effect.steps) - 1
    while first > 0 and effect.good[first - 1]:
        first -= 1
    while last < end and effect.good[last + 1]:
        last += 1
    values = [value for step in effect.steps[first : last + 1] for value in step]
    # Two digits for the ends of a range are enough to choose the next sweep's range.
    low, high = (number(float(f"{value:.2g}")) for value in (values[0], values[-1]))
    if effect.is_list and len(values) <= MAX_LISTED:
        region, phrase = _either(values), f"best at {_either(values)}"
    elif low == high:
        region, phrase = low, f"best near {low}"
    else:
        region, phrase = f"{low} to {high}", f"best from {low} to {high}"
    trend = np.corrcoef(np.arange(end + 1), effect.ranks)[0, 1]
    direction = LOWER if first == 0 and trend >= MIN_TREND else ""
    direction = HIGHER if last == end and trend <= -MIN_TREND else direction
    worse = [word for word, is_tried in (("below", first > 0), ("above", last < end)) if is_tried]
    return BestRegion(direction, region, f"{phrase}, worse {' and '.join(worse)}")


def _either(values: Sequence[Any]) -> str:
    """`8, 16 or 32`"""
    shown = [number(value) if isinstance(value, float) else show(value) for value in values]
    return " or ".join([*([", ".join(shown[:-1])] if len(shown) > 1 else []), shown[-1]])
