"""Who waits for a worker, and who may go in. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE = 8
"""Later trials that may go in before one that waits; after that nobody passes it any more."""


@dataclass
class _Place(Generic[T]):
    who: T
    passed: int = 0
    """Those who came later and went in first."""


class Line(Generic[T]):
    """First come, first served; but those who fit beside the present ones need not wait for others.

    A trial that needs another base model has to wait until the worker is empty. So that this day comes, only
    PATIENCE later ones may pass it.
    """

    def __init__(self, patience: int = PATIENCE) -> None:
        self._patience = patience
        self._places: list[_Place[T]] = []

    def __len__(self) -> int:
        return len(self._places)

    def add(self, who: T) -> None:
        """Stand at the end."""
        self._places.append(_Place(who))

    def first(self) -> T:
        """Take out the one who has waited longest. Raises IndexError when nobody waits."""
        return self._places.pop(0).who

    def fitting(self, fits: Callable[[T], bool]) -> list[T]:
        """Take out those who may go in now, in their order."""
        going: list[T] = []
        staying: list[_Place[T]] = []
        for place in self._places:
            if fits(place.who) and all(before.passed < self._patience for before in staying):
                going.append(place.who)
                for before in staying:
                    before.passed += 1
            else:
                staying.append(place)
        self._places = staying
        return going

    def leaving(self, leaves: Callable[[T], bool]) -> list[T]:
        """Take out those who do not want to wait any longer."""
        asked = [(place, leaves(place.who)) for place in self._places]
        self._places = [place for place, gone in asked if not gone]
        return [place.who for place, gone in asked if gone]
