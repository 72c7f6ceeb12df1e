"""How long to wait between attempts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Waits that grow by a factor up to a limit. Pure: the caller has the clock and counts its attempts."""

    first: float
    """Seconds after the first failed attempt."""
    factor: float
    """By which each wait is longer than the one before."""
    most: float
    """Seconds that no wait exceeds."""

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failed attempts in a row, from 1 on."""
        try:
            return min(self.first * self.factor ** (failures - 1), self.most)
        except OverflowError:  # a power too large for a float, after about a day of failures
            return self.most
