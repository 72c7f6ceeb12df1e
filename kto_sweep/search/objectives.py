"""Several objectives: the metrics that a sweep is judged by, and the Pareto front of its trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OBJECTIVE_COUNTS = (2, 3)
"""How many objectives a sweep may have: with more, almost every trial is on the front."""


@dataclass(frozen=True)
class Objective:
    """One metric of several that a sweep is judged by."""

    name: str
    maximize: bool = False

    @property
    def goal(self) -> str:
        """W&B's word: minimize or maximize."""
        return "maximize" if self.maximize else "minimize"

    def loss(self, value: float) -> float:
        """The value with its sign turned where needed, so that lower is better."""
        return -value if self.maximize else value


def metric_of(config: Mapping[str, Any], objectives: Sequence[Objective]) -> Any:
    """The metric of a configuration: the first objective where it names none."""
    if config.get("metric") is None and objectives:
        return {"name": objectives[0].name, "goal": objectives[0].goal}
    return config.get("metric")


def pareto_front(losses: Sequence[Sequence[float]]) -> list[int]:
    """Positions of the rows that no other row dominates, in order; lower is better in every column.

    A row dominates another when it is nowhere worse and somewhere better; equal rows do not dominate each
    other.
    """
    # Sorted, a row can only be dominated by earlier rows, and if by any, then by one of the front.
    front: list[int] = []
    for position in sorted(range(len(losses)), key=lambda position: tuple(losses[position])):
        if not any(_dominates(losses[other], losses[position]) for other in front):
            front.append(position)
    return sorted(front)


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)
