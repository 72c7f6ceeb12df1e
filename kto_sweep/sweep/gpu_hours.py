"""What a sweep has taken of its GPUs, and will take: from its runs' times.

Trials that were trained together on one GPU share its time.
"""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kto_sweep.plan.cells import STEP_COUNT_PARAMETERS, cost_key
from kto_sweep.sweep.grid_status import CellState, Ledger, missing
from kto_sweep.sweep.view import SweepView, TrialRecord
from kto_sweep.trial import lookup


@dataclass(frozen=True)
class Spending:
    """GPU-seconds; a CPU counts as a GPU."""

    spent: float
    rest: float | None
    """Of the trials that have not ended, as those of their kind took; None: none has ended, or no end."""


def spending(view: SweepView, ledger: Ledger) -> Spending:
    """What the sweep has taken, and will take."""
    own = [trial for trial in view.trials if view.is_own(trial)]
    spent = spent_seconds(own)
    done = [cell.trial for cell in ledger.of(CellState.DONE) if cell.trial and cell.trial.seconds]
    left = missing(view, ledger)
    if not done or left is None:
        return Spending(spent, None)
    paid = [trial for trial in own if trial.seconds]
    share = spent / sum(trial.seconds or 0.0 for trial in paid)
    alike: dict[object, list[float]] = {}
    for trial in done:
        alike.setdefault(_cost(trial.config), []).append(trial.seconds or 0.0)
    average = statistics.fmean(trial.seconds or 0.0 for trial in done)

    def whole(config: Mapping[str, Any]) -> float:
        return statistics.fmean(alike.get(_cost(config), [average]))

    begun = [cell.trial for cell in ledger.of(CellState.RUNNING) if cell.trial]
    rest = sum(max(0.0, whole(trial.config) - (trial.seconds or 0.0)) for trial in begun)
    if ledger.is_complete:
        rest += sum(whole(cell.config) for cell in ledger.of(CellState.MISSING))
    else:
        rest += left * average
    return Spending(spent, rest * share)


def spent_seconds(trials: Iterable[TrialRecord]) -> float:
    """GPU-seconds: the time in which a place had any trial, once; runs of an unknown place count in full."""
    places: dict[str, list[tuple[float, float]]] = {}
    total = 0.0
    for trial in trials:
        if trial.seconds and trial.place and trial.created is not None:
            places.setdefault(trial.place, []).append((trial.created, trial.created + trial.seconds))
        else:
            total += trial.seconds or 0.0
    for place, spans in places.items():
        total += _covered(spans) * len(place.split(","))  # gpus 0,1 train one trial together
    return total


def _covered(spans: list[tuple[float, float]]) -> float:
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def _cost(config: Mapping[str, Any]) -> object:
    """What trials have in common that take the same time."""
    return cost_key(config), *(repr(lookup(config, name)) for name in sorted(STEP_COUNT_PARAMETERS))
