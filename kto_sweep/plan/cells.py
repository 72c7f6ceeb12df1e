"""The trials of a sweep as a plan sees them: those that take the same memory and time are one cell."""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

from kto_sweep.errors import TrialConfigError
from kto_sweep.search.grid import can_list
from kto_sweep.search.random import next_config
from kto_sweep.search.space import Parameter, Space, Value
from kto_sweep.trial import PARAMETERS, Trial, leaves, parameter_name

FREE = frozenset(
    {
        "learning_rate", "beta", "rho", "desirable_weight", "undesirable_weight", "loss_type", "warmup_ratio",
        "lr_scheduler", "weight_decay", "max_grad_norm", "lora_alpha", "seed",
    }
)  # fmt: skip
"""Parameters that change neither memory nor time."""

LENGTHS = frozenset({"epochs", "max_steps"})
"""Parameters that only say how many steps a trial has; its time grows in proportion."""

MOST_CELLS = 200
"""Cells that a plan looks at; of more, evenly many are left out."""
SAMPLE = 32
"""Trials drawn from a space that is no grid, for its time."""


@dataclass(frozen=True)
class Cell:
    """Trials alike in memory and time."""

    trial: Trial
    """One of them."""
    count: int
    """How many there are; 0 for a corner of a space that is no grid."""
    varied: Mapping[str, Value]
    """Its values of the searched parameters that memory and time depend on, by name."""


def grid_cells(space: Space) -> list[Cell]:
    """Every trial of a grid. Raises TrialConfigError for one that cannot be."""
    priced = [parameter for parameter in space.searched if not _free(parameter)]
    alike = math.prod(p.distribution.cell_count() or 1 for p in space.searched if _free(p))
    lists = [_distinct(parameter.distribution.cells() or ()) for parameter in priced]
    return _cells(space, priced, lists, alike)


def corner_cells(space: Space) -> list[Cell]:
    """The ends of every range, with every listed value, of a space that is no grid."""
    priced = [parameter for parameter in space.searched if not _free(parameter)]
    lists = [_distinct(parameter.distribution.extremes()) for parameter in priced]
    return _cells(space, priced, lists, 0)


def sample_trials(space: Space, count: int) -> list[Trial]:
    """Trials drawn at random, the same every time; combinations that cannot be are left out."""
    rng = random.Random(0)
    return list(_possible(next_config(space, rng) for _ in range(count)))


def is_grid(space: Space, method: str) -> bool:
    """Whether the sweep's trials can be listed."""
    return method == "grid" and can_list(space)


def _possible(configs: Iterator[Mapping[str, Value]]) -> Iterator[Trial]:
    for config in configs:
        try:
            yield Trial.from_config(config)
        except TrialConfigError:
            continue


def _cells(space: Space, priced: list[Parameter], lists: list[list[Value]], count: int) -> list[Cell]:
    total = math.prod(map(len, lists))
    every = max(1, math.ceil(total / MOST_CELLS))
    cells = []
    for values in islice(product(*lists), 0, None, every):
        paths = [parameter.path for parameter in priced]
        chosen = {p.path: p.distribution.ppf(0.5) for p in space.searched}
        chosen |= dict(zip(paths, values, strict=True))
        names = [".".join(path) for path in paths]
        trial = Trial.from_config(space.config(chosen))
        cells.append(Cell(trial, count * every, dict(zip(names, values, strict=True))))
    return cells


def _free(parameter: Parameter) -> bool:
    name = parameter_name(parameter.path)
    return name in FREE and name in PARAMETERS


def _distinct(values: tuple[Value, ...]) -> list[Value]:
    kept: list[Value] = []
    for value in values:
        if not any(value == other and type(value) is type(other) for other in kept):
            kept.append(value)
    return kept


def cost_key(config: Mapping[str, Any]) -> object:
    """What trials have in common whose steps take the same time."""
    return frozenset(
        (".".join(path), repr(value))
        for path, value in leaves(config)
        if parameter_name(path) not in FREE | LENGTHS
    )
