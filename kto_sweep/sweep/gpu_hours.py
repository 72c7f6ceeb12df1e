"""GPU time of a sweep, spent and remaining, from the times of its runs.

Trials that train together on one GPU share its time.
"""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kto_sweep.plan.cells import STEP_COUNT_PARAMETERS, cost_key
from kto_sweep.sweep.grid_status import CellState, GridStatus, count_missing
from kto_sweep.sweep.view import SweepView, TrialRecord
from kto_sweep.trial import lookup, with_defaults


@dataclass(frozen=True)
class GpuTime:
    """GPU-seconds; a CPU counts as one GPU."""

    spent: float
    remaining: float | None
    """Estimate for unfinished trials from finished ones of the same cost; None if no trial has finished or
    the sweep is unlimited."""


def gpu_time(view: SweepView, status: GridStatus) -> GpuTime:
    """The GPU time that the sweep has spent, and an estimate of what remains."""
    counted = [trial for trial in view.trials if view.is_counted(trial)]
    spent = spent_seconds(counted)
    done = [cell.trial for cell in status.in_state(CellState.DONE) if cell.trial and cell.trial.seconds]
    missing = count_missing(view, status)
    if not done or missing is None:
        return GpuTime(spent, None)
    # Concurrent trials take less GPU time than the sum of their times; assume the same ratio for the rest.
    share = spent / sum(trial.seconds or 0.0 for trial in counted)
    seconds_by_cost: dict[object, list[float]] = {}
    for trial in done:
        seconds_by_cost.setdefault(_cost(trial.config), []).append(trial.seconds or 0.0)
    average = statistics.fmean(trial.seconds or 0.0 for trial in done)

    def expected_seconds(config: Mapping[str, Any]) -> float:
        return statistics.fmean(seconds_by_cost.get(_cost(config), [average]))

    running = [cell.trial for cell in status.in_state(CellState.RUNNING) if cell.trial]
    remaining = sum(max(0.0, expected_seconds(trial.config) - (trial.seconds or 0.0)) for trial in running)
    if status.lists_every_cell:
        remaining += sum(expected_seconds(cell.config) for cell in status.in_state(CellState.MISSING))
    else:
        remaining += missing * average
    return GpuTime(spent, remaining * share)


def spent_seconds(trials: Iterable[TrialRecord]) -> float:
    """GPU-seconds in which each device trained at least one trial, plus all time of runs without a device."""
    spans_by_device: dict[str, list[tuple[float, float]]] = {}
    total = 0.0
    for trial in trials:
        if trial.seconds and trial.device and trial.created is not None:
            span = (trial.created, trial.created + trial.seconds)
            spans_by_device.setdefault(trial.device, []).append(span)
        else:
            total += trial.seconds or 0.0
    for device, spans in spans_by_device.items():
        total += _union_length(spans) * len(device.split(","))  # "gpus 0,1" train one trial together
    return total


def _union_length(spans: list[tuple[float, float]]) -> float:
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def _cost(config: Mapping[str, Any]) -> object:
    """A key that is equal for trials that take the same time."""
    full = with_defaults(config)
    return cost_key(full), *(repr(lookup(full, name)) for name in sorted(STEP_COUNT_PARAMETERS))
