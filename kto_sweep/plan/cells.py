"""The trials of a sweep, grouped by cost: trials that need the same memory and time form one cell."""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

from kto_sweep.errors import TrialConfigError
from kto_sweep.search.distributions import Value, value_key
from kto_sweep.search.grid import can_list
from kto_sweep.search.space import Parameter, Space
from kto_sweep.trial import Trial, leaves, parameter_name, with_defaults

COST_NEUTRAL_PARAMETERS = frozenset(
    {
        "learning_rate", "beta", "rho", "desirable_weight", "undesirable_weight", "loss_type", "warmup_ratio",
        "lr_scheduler", "weight_decay", "max_grad_norm", "lora_alpha", "seed",
    }
)  # fmt: skip
"""Parameters that change neither memory nor time."""

STEP_COUNT_PARAMETERS = frozenset({"epochs", "max_steps"})
"""Parameters that change only the number of steps; a trial's time is proportional to it."""

MAX_CELLS = 200
"""Maximum number of cells in a plan; of more, every n-th is used."""
SAMPLE_TRIALS = 32
"""Random trials of a space that is not a grid, used to estimate its time."""


@dataclass(frozen=True)
class PlanCell:
    """Trials that need the same memory and time."""

    trial: Trial
    """One of these trials."""
    count: int
    """Number of trials; 0 for a corner of a space that is not a grid."""
    varied: Mapping[str, Value]
    """Values of the searched parameters that change memory or time, by name."""


def grid_cells(space: Space) -> list[PlanCell]:
    """The cells of all trials of a grid. Raises TrialConfigError for an invalid trial."""
    cost_parameters = [parameter for parameter in space.searched if not _is_cost_neutral(parameter)]
    per_cell = math.prod(p.distribution.cell_count() or 1 for p in space.searched if _is_cost_neutral(p))
    lists = [_distinct(parameter.distribution.cells() or ()) for parameter in cost_parameters]
    return _cells(space, cost_parameters, lists, per_cell)


def corner_cells(space: Space) -> list[PlanCell]:
    """The ends of every range combined with every listed value, for a space that is not a grid."""
    cost_parameters = [parameter for parameter in space.searched if not _is_cost_neutral(parameter)]
    lists = [_distinct(parameter.distribution.extremes()) for parameter in cost_parameters]
    return _cells(space, cost_parameters, lists, 0)


def sample_trials(space: Space, count: int) -> list[Trial]:
    """Random valid trials, the same on every call."""
    rng = random.Random(0)
    return list(_valid_trials(space.sample(rng) for _ in range(count)))


def is_grid(space: Space, method: str) -> bool:
    """Whether the sweep is a grid whose trials can be listed."""
    return method == "grid" and can_list(space)


def _valid_trials(configs: Iterator[Mapping[str, Value]]) -> Iterator[Trial]:
    for config in configs:
        try:
            yield Trial.from_config(config)
        except TrialConfigError:
            continue


def _cells(
    space: Space, cost_parameters: list[Parameter], lists: list[list[Value]], count: int
) -> list[PlanCell]:
    total = math.prod(map(len, lists))
    every = max(1, math.ceil(total / MAX_CELLS))
    cells: dict[object, PlanCell] = {}
    for values in islice(product(*lists), 0, None, every):
        paths = [parameter.path for parameter in cost_parameters]
        chosen = {p.path: p.distribution.ppf(0.5) for p in space.searched}
        chosen |= dict(zip(paths, values, strict=True))
        varied: dict[str, Value] = {}
        for path, value in zip(paths, values, strict=True):
            varied |= _cost_values(path, value)
        # Mappings that differ in cost-neutral values only ({r: 8, beta: 0.1}, {r: 8, beta: 0.2}) are a cell.
        key = value_key(varied)
        earlier = cells[key].count if key in cells else 0
        cells[key] = PlanCell(Trial.from_config(space.config(chosen)), earlier + count * every, varied)
    return list(cells.values())


def _cost_values(path: tuple[str, ...], value: Value) -> dict[str, Value]:
    """The values that change memory or time, by dotted name: several in a mapping, else the value itself."""
    items = leaves(value, path) if isinstance(value, Mapping) else [(path, value)]
    return {
        ".".join(name): item for name, item in items if parameter_name(name) not in COST_NEUTRAL_PARAMETERS
    }


def _is_cost_neutral(parameter: Parameter) -> bool:
    return not any(_cost_values(parameter.path, value) for value in parameter.distribution.extremes())


def _distinct(values: tuple[Value, ...]) -> list[Value]:
    distinct: list[Value] = []
    for value in values:
        if not any(value == other and type(value) is type(other) for other in distinct):
            distinct.append(value)
    return distinct


def cost_key(config: Mapping[str, Any]) -> object:
    """A key that is equal for trials whose steps take the same time.

    A run's configuration has every parameter, a cell's only those that the sweep names.
    """
    return frozenset(
        (".".join(path), repr(value))
        for path, value in leaves(with_defaults(config))
        if parameter_name(path) not in COST_NEUTRAL_PARAMETERS | STEP_COUNT_PARAMETERS
    )
