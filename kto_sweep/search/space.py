"""The search space of a W&B sweep: its parameters and their distributions."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kto_sweep.search.distributions import Distribution, Value, value_key

CONFIGURATION = "configuration"
"""The parameter of `kto-sweep replicate` whose values are whole configurations."""
SEED = "seed"
"""The parameter in which replicates of a configuration differ."""


def own_name(name: str) -> str:
    """A parameter's name in a sentence: without the group of a sweep that `replicate` wrote."""
    return name.removeprefix(f"{CONFIGURATION}.")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a space."""

    path: tuple[str, ...]
    """Its name; more than one part when it is nested."""
    distribution: Distribution

    @property
    def name(self) -> str:
        """The path with dots, as W&B writes nested names."""
        return ".".join(self.path)

    @property
    def varies(self) -> bool:
        """True when there is more than one possible value."""
        return len({value_key(value) for value in self.distribution.extremes()}) > 1


@dataclass(frozen=True)
class Space:
    """All parameters of a sweep, in W&B's grid order."""

    parameters: tuple[Parameter, ...]
    searched: tuple[Parameter, ...] = field(init=False)
    """The parameters with more than one possible value."""

    def __post_init__(self) -> None:
        # W&B sorts each group separately: opt.lr comes before opt-x, though "opt-x" < "opt.lr".
        ordered = tuple(sorted(self.parameters, key=lambda parameter: parameter.path))
        object.__setattr__(self, "parameters", ordered)
        object.__setattr__(self, "searched", tuple(p for p in ordered if p.varies))

    def grid_size(self) -> int | None:
        """The number of distinct trials of a grid; None when a parameter cannot be listed."""
        counts = [parameter.distribution.cell_count() for parameter in self.parameters]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    def config(self, values: Mapping[tuple[str, ...], Value]) -> dict[str, Value]:
        """One trial's nested configuration from its values by path; constants may be omitted.

        Raises KeyError for a searched parameter that has no value.
        """
        tree: dict[str, Value] = {}
        varying = {parameter.path for parameter in self.searched}
        for parameter in self.parameters:
            *groups, leaf = parameter.path
            branch = tree
            for group in groups:
                branch = branch.setdefault(group, {})
            if parameter.path in values or parameter.path in varying:
                branch[leaf] = values[parameter.path]
            else:
                branch[leaf] = parameter.distribution.ppf(0.5)
        return tree

    def sample(self, rng: random.Random) -> dict[str, Value]:
        """Random search's next trial: every parameter drawn independently from its distribution."""
        return self.config(
            {parameter.path: parameter.distribution.ppf(rng.random()) for parameter in self.searched}
        )


def searched_names(space: Space) -> tuple[str, ...]:
    """Dotted names of the searched parameters; one whose values are mappings counts as the names in them."""
    names: dict[str, None] = {}
    for parameter in space.searched:
        values = getattr(parameter.distribution, "values", ())
        if any(isinstance(value, Mapping) for value in values):
            names |= dict.fromkeys(_varying_leaves(parameter.name, values))
        else:
            names[parameter.name] = None
    return tuple(names)


def _varying_leaves(prefix: str, values: Sequence[Value]) -> list[str]:
    """The dotted names below `prefix` whose value is not the same in all of these values."""
    seen: dict[str, set[object]] = {}
    for value in values:
        for name, leaf in _leaves(prefix, value):
            seen.setdefault(name, set()).add(value_key(leaf))
    count = len(values)
    present = {name: sum(name in dict(_leaves(prefix, value)) for value in values) for name in seen}
    return [name for name, keys in seen.items() if len(keys) > 1 or present[name] < count]


def _leaves(prefix: str, value: Value) -> Iterator[tuple[str, Value]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{prefix}.{key}", item)
    else:
        yield prefix, value
