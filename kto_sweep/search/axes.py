"""The searched parameters of a space as axes of a unit cube: converts configurations to points and back.

A parameter with few values is a `Levels` axis: [0, 1] in equal parts, each value at the middle of its part.
Any other is a `Scale`, on which a value's coordinate is its cumulative probability.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from kto_sweep.search.distributions import Categorical, Continuous, Distribution, IntUniform, Value, value_key
from kto_sweep.search.space import Space

MAX_LEVELS = 64
"""Ranges of at most this many whole numbers are levels; longer ones are treated as continuous."""

Point: TypeAlias = tuple[float, ...]
"""A coordinate in [0, 1] for each axis."""


@dataclass(frozen=True)
class Levels:
    """An axis of a few values, such as batch sizes or optimizers."""

    values: tuple[Value, ...]
    """Distinct; ascending when ordered."""
    ordered: bool
    """The values are numbers, so neighbours are similar."""

    def value(self, coordinate: float) -> Value:
        """The value whose part of [0, 1] holds `coordinate`."""
        return self.values[self.level(coordinate)]

    def level(self, coordinate: float) -> int:
        """The position in `values` of the value at `coordinate`."""
        return min(len(self.values) - 1, math.floor(coordinate * len(self.values)))

    def coordinate(self, value: Value) -> float | None:
        """The middle of the part of `value`; None when it is not listed."""
        keys = [value_key(listed) for listed in self.values]
        key = value_key(value)
        return self.middle(keys.index(key)) if key in keys else None

    def middle(self, level: int) -> float:
        """The coordinate of the value at this position."""
        return (level + 0.5) / len(self.values)

    def coordinates(self, limit: int) -> list[float] | None:
        """The coordinates of all values, or None when there are more than `limit`."""
        count = len(self.values)
        return [self.middle(level) for level in range(count)] if count <= limit else None


@dataclass(frozen=True)
class Scale:
    """An axis of numbers, possibly rounded, positioned by their cumulative probability."""

    distribution: IntUniform | Continuous

    def value(self, coordinate: float) -> Value:
        """The value at `coordinate`."""
        return self.distribution.ppf(coordinate)

    def coordinate(self, value: Value) -> float | None:
        """The cumulative probability of `value`; None when it is not a number in this range."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        low, high = self.distribution.ppf(0), self.distribution.ppf(1)
        # A value that went through log and exp, or was rounded to another q, may be slightly outside.
        slack = self._step() or 1e-9 * max(abs(low), abs(high))
        return self.distribution.cdf(value) if low - slack <= value <= high + slack else None

    def coordinates(self, limit: int) -> list[float] | None:
        """The coordinates of all values; None when there are more than `limit`, or infinitely many."""
        step = self._step()
        if not step:
            return None
        first, last = (round(self.distribution.ppf(end) / step) for end in (0, 1))
        if last - first >= limit:
            return None
        return [self.distribution.cdf(number * step) for number in range(first, last + 1)]

    def _step(self) -> float:
        """The distance between neighbouring values; 0 for a continuous range."""
        return 1 if isinstance(self.distribution, IntUniform) else self.distribution.q or 0


Axis: TypeAlias = Levels | Scale


def axis_of(distribution: Distribution) -> Axis:
    """The axis of the values of `distribution`."""
    if isinstance(distribution, Categorical):
        return _levels(distribution)
    if isinstance(distribution, IntUniform) and distribution.cell_count() <= MAX_LEVELS:
        return Levels(distribution.cells(), ordered=True)
    assert isinstance(distribution, IntUniform | Continuous)
    return Scale(distribution)


def _levels(distribution: Categorical) -> Levels:
    shares = distribution.probabilities or (1.0,) * len(distribution.values)
    # A value may be listed twice, or have probability 0.
    distinct: dict[object, Value] = {}
    for value, share in zip(distribution.values, shares, strict=True):
        if share > 0:
            distinct.setdefault(value_key(value), value)
    values = tuple(distinct.values())
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return Levels(tuple(sorted(values)), ordered=True)
    return Levels(values, ordered=False)


@dataclass(frozen=True)
class Cube:
    """The searched parameters of a space, one axis each."""

    space: Space
    axes: tuple[Axis, ...]

    def point(self, config: Mapping[str, Any]) -> Point | None:
        """The point of a configuration; None when a value is missing or not in this space."""
        coordinates = [
            axis.coordinate(_value_at(config, parameter.path))
            for axis, parameter in zip(self.axes, self.space.searched, strict=True)
        ]
        point = tuple(coordinate for coordinate in coordinates if coordinate is not None)
        return point if len(point) == len(coordinates) else None

    def config(self, point: Sequence[float]) -> dict[str, Value]:
        """The nested configuration at a point."""
        paths = [parameter.path for parameter in self.space.searched]
        return self.space.config(dict(zip(paths, self._values(point), strict=True)))

    def key(self, point: Sequence[float]) -> object:
        """A key that is equal for points of the same configuration."""
        return value_key(self._values(point))

    def points(self, limit: int) -> Iterator[Point] | None:
        """A point for every configuration, or None when there are more than `limit`."""
        listed = [axis.coordinates(limit) for axis in self.axes]
        finite = [coordinates for coordinates in listed if coordinates is not None]
        if len(finite) < len(listed) or math.prod(map(len, finite)) > limit:
            return None
        return itertools.product(*finite)

    def _values(self, point: Sequence[float]) -> list[Value]:
        return [axis.value(float(coordinate)) for axis, coordinate in zip(self.axes, point, strict=True)]


def cube_of(space: Space) -> Cube:
    """The cube of a space."""
    return Cube(space, tuple(axis_of(parameter.distribution) for parameter in space.searched))


def _value_at(config: Any, path: tuple[str, ...]) -> Value:
    for name in path:
        config = config.get(name) if isinstance(config, Mapping) else None
    return config
