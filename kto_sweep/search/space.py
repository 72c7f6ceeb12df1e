"""The search space of a W&B sweep: its parameters, their distributions, and what a grid makes of them.

`parse_space` reads the `parameters` section of a sweep's configuration, from a file or from a server's
database, and knows nothing of training: any sweep that W&B accepts is a space.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from kto_sweep.search.distributions import Distribution, Value, value_key
from kto_sweep.search.space_parser import Parameter, Violation, parse_parameters
from kto_sweep.text import number_from_text

__all__ = [
    "Distribution",
    "Parameter",
    "Space",
    "Value",
    "Violation",
    "number_from_text",
    "parse_space",
    "value_key",
]


@dataclass(frozen=True)
class Space:
    """All parameters of a sweep, in the order in which W&B's grid visits them."""

    parameters: tuple[Parameter, ...]
    searched: tuple[Parameter, ...] = field(init=False)
    """The parameters with more than one possible value."""

    def __post_init__(self) -> None:
        # W&B sorts each group by itself: opt.lr comes before opt-x, though "opt-x" < "opt.lr".
        ordered = tuple(sorted(self.parameters, key=lambda parameter: parameter.path))
        object.__setattr__(self, "parameters", ordered)
        object.__setattr__(self, "searched", tuple(p for p in ordered if p.varies))

    def grid_size(self) -> int | None:
        """The number of distinct trials of a grid; None when a parameter cannot be listed."""
        counts = [parameter.distribution.cell_count() for parameter in self.parameters]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    def config(self, values: Mapping[tuple[str, ...], Value]) -> dict[str, Value]:
        """One trial's nested configuration from its values by path; what does not vary need not be given.

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


def parse_space(parameters: Mapping[str, object]) -> tuple[Space | None, list[Violation]]:
    """The space that a `parameters` section describes, or None and every violation in it."""
    found, violations = parse_parameters(parameters)
    return (None if violations else Space(tuple(found))), violations
