"""Groups runs by configuration, ignoring the seed: the mean of each group, and the noise between seeds."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kto_sweep.compare.ranking import RankedTrial

SEED = "seed"


@dataclass(frozen=True)
class SeedGroup:
    """The ranked runs of one configuration, which differ only in the seed; at least one."""

    runs: tuple[RankedTrial, ...]
    """Best first."""
    mean: float
    standard_error: float | None
    """Standard error of the mean; None with one run."""

    @property
    def group(self) -> str:
        """The eval_groups group of its runs."""
        return self.runs[0].group


@dataclass(frozen=True)
class SeedNoise:
    """How much runs of one configuration differ, pooled over all groups with several runs."""

    deviation: float
    """Standard deviation of one run."""
    degrees_of_freedom: int
    """Runs minus configurations."""


def group_by_seed(ranked: Sequence[RankedTrial], goal: str) -> list[SeedGroup]:
    """One group for each configuration with a value of the metric, best mean first.

    Runs that were judged on other rows are in other groups, which keep the order of `ranked`.
    """
    runs_by_config: dict[str, dict[str, list[RankedTrial]]] = {}
    for item in ranked:
        if item.value is not None:
            key = json.dumps(_without_seed(item.trial.config), sort_keys=True, default=str)
            runs_by_config.setdefault(item.group, {}).setdefault(key, []).append(item)
    sign = -1 if goal == "maximize" else 1
    groups: list[SeedGroup] = []
    for configs in runs_by_config.values():
        groups += sorted(
            (_group(tuple(runs)) for runs in configs.values()), key=lambda each: sign * each.mean
        )
    return groups


def _without_seed(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: _without_seed(value) for key, value in config.items() if key != SEED}


def _group(runs: tuple[RankedTrial, ...]) -> SeedGroup:
    values = [item.value for item in runs if item.value is not None]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return SeedGroup(runs, statistics.fmean(values), error)


def seed_noise(groups: Sequence[SeedGroup]) -> SeedNoise | None:
    """The pooled standard deviation; None if each configuration ran once."""
    squares, degrees = 0.0, 0
    for group in groups:
        values = [item.value for item in group.runs if item.value is not None]
        if len(values) > 1:
            squares += statistics.variance(values) * (len(values) - 1)
            degrees += len(values) - 1
    return SeedNoise(math.sqrt(squares / degrees), degrees) if degrees else None
