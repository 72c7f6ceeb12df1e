"""Multiple objectives: the metrics that a sweep optimizes, and the Pareto front of its trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OBJECTIVE_COUNTS = (2, 3)
"""Supported numbers of objectives; with more, almost every trial is on the front."""


@dataclass(frozen=True)
class Objective:
    """One of several metrics that a sweep optimizes."""

    name: str
    maximize: bool = False

    @property
    def goal(self) -> str:
        """minimize or maximize, as W&B spells it."""
        return "maximize" if self.maximize else "minimize"

    def loss(self, value: float) -> float:
        """The value, negated if higher is better, so that lower is better."""
        return -value if self.maximize else value


def metric_of(config: Mapping[str, Any], objectives: Sequence[Objective]) -> Any:
    """The metric of a configuration; the first objective if it has none."""
    if config.get("metric") is None and objectives:
        return {"name": objectives[0].name, "goal": objectives[0].goal}
    return config.get("metric")


def pareto_front(losses: Sequence[Sequence[float]]) -> list[int]:
    """Positions of the rows that no other row dominates, in order; lower is better in every column.

    A row dominates another if it is worse in no column and better in at least one; equal rows do not dominate
    each other.
    """
    # In sorted order, only earlier rows can dominate a row, and if one does, so does one on the front.
    front: list[int] = []
    for position in sorted(range(len(losses)), key=lambda position: tuple(losses[position])):
        if not any(_dominates(losses[other], losses[position]) for other in front):
            front.append(position)
    return sorted(front)


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
