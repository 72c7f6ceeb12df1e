"""Time that this process has seen pass, by looking again and again."""

import time
from collections.abc import Callable

MOST_AT_ONCE = 5.0
"""Seconds between two looks that count: while this process stood still itself (it was stopped, its job or its
machine suspended) it could hear nobody."""


class Looks:
    """A clock to look at every second or so."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def since(self) -> float:
        """Seconds since the look before, MOST_AT_ONCE at most."""
        before, self._last = self._last, self._clock()
        return min(self._last - before, MOST_AT_ONCE)
