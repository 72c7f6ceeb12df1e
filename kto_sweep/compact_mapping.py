"""Read-only mappings that share their keys: the configurations and summaries of tens of thousands of runs."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

MAX_SHARED_TEXT = 200
"""Longer texts, such as error messages, are not shared."""


class CompactMapping(Mapping[str, Any]):
    """A mapping with a table of keys that all mappings with these keys share.

    A dictionary of 25 settings takes 1.2 kB, this 0.3: a sweep's runs have the same keys, and mostly the same
    texts, which are shared too.
    """

    __slots__ = ("_places", "_values")

    def __init__(self, keys: Sequence[str], values: Iterable[Any]) -> None:
        self._places = _places(tuple(keys))
        self._values = tuple([_shared(value) for value in values])

    def __getitem__(self, key: str) -> Any:
        return self._values[self._places[key]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; the inherited method would raise and catch an error for a missing one."""
        place = self._places.get(key)
        return default if place is None else self._values[place]

    def items(self) -> Any:
        """Pairs, without a look-up of each."""
        return list(zip(self._places, self._values, strict=True))

    def values(self) -> Any:
        """The values, in the order of the keys."""
        return self._values

    def __repr__(self) -> str:
        return repr(dict(self))


@lru_cache(maxsize=4096)
def _places(keys: tuple[str, ...]) -> dict[str, int]:
    return {sys.intern(key): place for place, key in enumerate(keys)}


def _shared(value: Any) -> Any:
    return sys.intern(value) if type(value) is str and len(value) <= MAX_SHARED_TEXT else value
