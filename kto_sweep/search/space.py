"""The search space of a W&B sweep: its parameters and their distributions."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from kto_sweep.search.distributions import Distribution, Value, value_key


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
