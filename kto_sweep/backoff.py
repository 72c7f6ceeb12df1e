"""Delays between attempts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Waits that grow by a factor up to a limit. Pure: the caller has the clock and counts its attempts."""

    first: float
    """Seconds after the first failed attempt."""
    factor: float
    """Ratio of each wait to the one before."""
    most: float
    """The longest wait, in seconds."""

    def delay(self, failures: int) -> float:
        """Seconds to wait after this many consecutive failed attempts, at least 1."""
        try:
            return min(self.first * self.factor ** (failures - 1), self.most)
        except OverflowError:  # a power too large for a float, after about a day of failures
            return self.most
