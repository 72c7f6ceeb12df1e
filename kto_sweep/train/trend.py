"""Where a noisy series is and where it goes, with how sure that is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

SURE = 3.0
"""Standard errors that make a difference: one window in several hundred exceeds them by chance."""


@dataclass(frozen=True)
class Trend:
    """A series over one window."""

    mean: float
    error: float
    """Standard error of the mean."""
    change: float
    """Mean of the later half minus that of the earlier half."""
    change_error: float

    @property
    def falling(self) -> bool:
        """Surely lower at the end than at the beginning."""
        return self.change < -SURE * self.change_error

    @property
    def rising(self) -> bool:
        """Surely higher."""
        return self.change > SURE * self.change_error

    @property
    def below(self) -> float:
        """The mean is surely below this."""
        return self.mean + SURE * self.error

    @property
    def above(self) -> float:
        """The mean is surely above this."""
        return self.mean - SURE * self.error

    def minus(self, other: "Trend") -> "Trend":
        """The difference of two independent series."""
        return Trend(
            self.mean - other.mean,
            math.hypot(self.error, other.error),
            self.change - other.change,
            math.hypot(self.change_error, other.change_error),
        )


def trend(values: Sequence[float]) -> Trend:
    """The trend of at least four values, the oldest first.

    The noise is judged by the differences of neighbours (J. von Neumann 1941, doi 10.1214/aoms/1177731677),
    so that a steep trend is not taken for noise. For 0, 1, 2, 3, 4, 5 it is 1 / sqrt(2) a value:

    >>> found = trend([0, 1, 2, 3, 4, 5])
    >>> found.mean, found.change, round(found.error * 6**0.5, 4), found.rising
    (2.5, 3.0, 0.7071, True)
    """
    n, half = len(values), len(values) // 2
    mean = sum(values) / n
    change = sum(values[-half:]) / half - sum(values[:half]) / half
    spread = math.sqrt(sum((after - before) ** 2 for before, after in pairwise(values)) / (2 * (n - 1)))
    return Trend(mean, spread / math.sqrt(n), change, spread * math.sqrt(2 / half))
