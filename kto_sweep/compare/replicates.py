"""Runs equal in everything but the seed: what one configuration gives, and how much that varies by chance."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kto_sweep.compare.ranking import Ranked

SEED = "seed"


@dataclass(frozen=True)
class Replicates:
    """The ranked runs of one configuration, seeds aside; at least one."""

    runs: tuple[Ranked, ...]
    """The best first."""
    mean: float
    error: float | None
    """Standard error of the mean; None with one run."""


@dataclass(frozen=True)
class Noise:
    """How much runs of the same configuration differ, pooled over all that have replicates."""

    deviation: float
    """Standard deviation of one run."""
    freedom: int
    """Degrees of freedom: runs less configurations."""


def group(ranked: Sequence[Ranked], goal: str) -> list[Replicates]:
    """One entry per configuration with a value of the metric, the best mean first."""
    groups: dict[str, list[Ranked]] = {}
    for item in ranked:
        if item.value is not None:
            groups.setdefault(
                json.dumps(_seedless(item.trial.config), sort_keys=True, default=str), []
            ).append(item)
    found = [_replicates(tuple(items)) for items in groups.values()]
    sign = -1 if goal == "maximize" else 1
    return sorted(found, key=lambda each: sign * each.mean)


def _seedless(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: _seedless(value) for key, value in config.items() if key != SEED}


def _replicates(items: tuple[Ranked, ...]) -> Replicates:
    values = [item.value for item in items if item.value is not None]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Replicates(items, statistics.fmean(values), error)


def noise(groups: Sequence[Replicates]) -> Noise | None:
    """The pooled standard deviation; None where each configuration has run once."""
    squares, freedom = 0.0, 0
    for each in groups:
        values = [item.value for item in each.runs if item.value is not None]
        if len(values) > 1:
            squares += statistics.variance(values) * (len(values) - 1)
            freedom += len(values) - 1
    return Noise(math.sqrt(squares / freedom), freedom) if freedom else None
