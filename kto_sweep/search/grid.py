"""Grid search: every combination once, in W&B's order (parameters by name, the last one varying fastest).

One exception: SLOWEST_PARAMETERS vary slowest, because trials must share them to be trained together.
"""

import json
import math
import sys
from collections.abc import Container, Iterator, Mapping
from functools import lru_cache
from typing import Any

from kto_sweep.search.distributions import Distribution, IntUniform, Value
from kto_sweep.search.space import Parameter, Space

MAX_AXIS_CELLS = 1_000_000
"""Maximum number of cells of one q_uniform parameter; more could exhaust memory."""

SLOWEST_PARAMETERS = (
    *("model", "model_size", "quantization"),
    *("dataset", "eval_dataset", "max_length", "eval_fraction"),
)
"""Parameters shared by all trials that an agent trains together: base model first, then data."""

_CONTAINERS = frozenset({dict, list, tuple})
_encode = json.JSONEncoder(sort_keys=True).encode  # built once: a large grid has tens of thousands of keys


def can_list(space: Space) -> bool:
    """Whether a grid can visit this space: every parameter has a list of values within the limits."""
    return all(
        (count := parameter.distribution.cell_count()) is not None
        and count <= (sys.maxsize if isinstance(parameter.distribution, IntUniform) else MAX_AXIS_CELLS)
        for parameter in space.parameters
    )


def next_cell(
    space: Space, tried_keys: Container[str], start: int = 0
) -> tuple[int, dict[str, Value], str] | None:
    """The first cell from number `start` whose key is not in `tried_keys`: number, configuration, key."""
    axes = {parameter.path: _Axis(parameter.distribution) for parameter in in_order(space)}
    for number in range(start, math.prod(axis.length for axis in axes.values())):
        values = _values(axes, number)
        key = _key([values[parameter.path] for parameter in space.parameters])
        if key not in tried_keys:
            return number, space.config(values), key
    return None


def cells(space: Space) -> Iterator[tuple[str, dict[str, Value]]]:
    """Every distinct cell in grid order: its key and its configuration."""
    axes = {parameter.path: _Axis(parameter.distribution) for parameter in in_order(space)}
    seen = set()
    for number in range(math.prod(axis.length for axis in axes.values())):
        values = _values(axes, number)
        key = _key([values[parameter.path] for parameter in space.parameters])
        if key not in seen:
            seen.add(key)
            yield key, space.config(values)


def in_order(space: Space) -> list[Parameter]:
    """The parameters in grid order, slowest first."""

    def place(parameter: Parameter) -> int:
        names = {parameter.path[-1], "_".join(parameter.path[-2:])}  # model_size, or model.size in a group
        return next(
            (rank for rank, name in enumerate(SLOWEST_PARAMETERS) if name in names), len(SLOWEST_PARAMETERS)
        )

    return sorted(space.parameters, key=place)


def cell_key(space: Space, config: Mapping[str, Any]) -> str:
    """A key that is equal for equal cells: 3 and 3.0 are one value, unknown keys are ignored."""
    return _key([_value_at(config, parameter.path) for parameter in space.parameters])


class _Axis:
    """The cells of one parameter, by position."""

    def __init__(self, distribution: Distribution) -> None:
        # A range of whole numbers can be long, so it stays a range.
        if isinstance(distribution, IntUniform):
            self._values: range | tuple[Value, ...] = range(distribution.min, distribution.max + 1)
        else:
            self._values = distribution.cells() or ()
        self.length = len(self._values)

    def __getitem__(self, position: int) -> Value:
        return self._values[position]


def _values(axes: Mapping[tuple[str, ...], _Axis], number: int) -> dict[tuple[str, ...], Value]:
    """The values of cell `number`: its digits in the mixed radix of the axes, the last axis last."""
    values = {}
    for path, axis in reversed(list(axes.items())):
        number, position = divmod(number, axis.length)
        values[path] = axis[position]
    return values


def _value_at(config: Any, path: tuple[str, ...]) -> Value:
    if len(path) == 1:
        return config.get(path[0])
    for name in path:
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _key(values: list[Value]) -> str:
    """As JSON; the texts of single values are kept, as a grid combines few values in many cells."""
    return f"[{', '.join([_text(value) for value in values])}]"


def _text(value: Value) -> str:
    return _encode(_canonical(value)) if type(value) in _CONTAINERS else _text_of_plain(value)


@lru_cache(maxsize=8192, typed=True)  # typed: 1 and True are two values
def _text_of_plain(value: Value) -> str:
    return _encode(_canonical(value))


def _canonical(value: Value) -> Value:
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return value
