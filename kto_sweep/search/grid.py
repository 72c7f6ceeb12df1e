"""Grid search: every combination once, in W&B's order (parameters by name, the last one varying fastest).

But for what trials must share to be trained together (SLOWEST): it varies slowest, whatever it is called.
"""

import json
import math
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from kto_sweep.search.distributions import Distribution, IntUniform, Value
from kto_sweep.search.space import Parameter, Space

LONGEST_AXIS = 1_000_000
"""Cells of one q_uniform parameter at most; more would be no grid and could fill the memory."""

SLOWEST = ("model", "model_size", "quantization", "dataset", "max_length", "eval_fraction")
"""Parameters that an agent changes for all its trials at once: base model first, then data."""

_encode = json.JSONEncoder(sort_keys=True).encode  # made once: a changed grid has keys by the ten thousand


def can_list(space: Space) -> bool:
    """Whether a grid can visit this space: every parameter can be listed, within reason."""
    return all(
        (count := parameter.distribution.cell_count()) is not None
        and count <= (sys.maxsize if isinstance(parameter.distribution, IntUniform) else LONGEST_AXIS)
        for parameter in space.parameters
    )


def next_cell(
    space: Space, tried_keys: Collection[str], start: int = 0
) -> tuple[int, dict[str, Value], str] | None:
    """The first cell from number `start` on that is not in `tried_keys`: its number, configuration, key."""
    axes = {parameter.path: _Axis(parameter.distribution) for parameter in in_order(space)}
    for number in range(start, math.prod(axis.length for axis in axes.values())):
        values = _values(axes, number)
        key = _key([values[parameter.path] for parameter in space.parameters])
        if key not in tried_keys:
            return number, space.config(values), key
    return None


def cells(space: Space) -> Iterator[tuple[str, dict[str, Value]]]:
    """Every different cell in the order of the grid: its key and its configuration."""
    axes = {parameter.path: _Axis(parameter.distribution) for parameter in in_order(space)}
    seen = set()
    for number in range(math.prod(axis.length for axis in axes.values())):
        values = _values(axes, number)
        key = _key([values[parameter.path] for parameter in space.parameters])
        if key not in seen:
            seen.add(key)
            yield key, space.config(values)


def in_order(space: Space) -> list[Parameter]:
    """The parameters as the grid varies them, the slowest first."""

    def place(parameter: Parameter) -> int:
        names = {parameter.path[-1], "_".join(parameter.path[-2:])}  # also in a group: model.size
        return next((at for at, name in enumerate(SLOWEST) if name in names), len(SLOWEST))

    return sorted(space.parameters, key=place)


def cell_key(space: Space, config: Mapping[str, Any]) -> str:
    """A text that tells cells apart: 3 and 3.0 are one value, unknown keys do not count."""
    return _key([_at(config, parameter.path) for parameter in space.parameters])


class _Axis:
    """The cells of one parameter, by position."""

    def __init__(self, distribution: Distribution) -> None:
        # A range of whole numbers can be long and need not be written out.
        if isinstance(distribution, IntUniform):
            self._values: range | tuple[Value, ...] = range(distribution.min, distribution.max + 1)
        else:
            self._values = distribution.cells() or ()
        self.length = len(self._values)

    def __getitem__(self, position: int) -> Value:
        return self._values[position]


def _values(axes: Mapping[tuple[str, ...], _Axis], number: int) -> dict[tuple[str, ...], Value]:
    """The values of cell `number`: its digits in a number system whose last digit is the last parameter."""
    values = {}
    for path, axis in reversed(list(axes.items())):
        number, position = divmod(number, axis.length)
        values[path] = axis[position]
    return values


def _at(config: Any, path: tuple[str, ...]) -> Value:
    for name in path:
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _key(values: list[Value]) -> str:
    return _encode([_normal(value) for value in values])


def _normal(value: Value) -> Value:
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {str(key): _normal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normal(item) for item in value]
    return value
