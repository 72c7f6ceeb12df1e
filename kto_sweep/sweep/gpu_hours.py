"""Time of a sweep on its devices, spent and remaining, from the times of its runs.

Trials that train together on one device share its time. What was spent never shrinks: each attempt of a trial
has its own span, which a crash, another attempt or another box leaves as it is.
"""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kto_sweep.plan.cells import COST_NEUTRAL_PARAMETERS, STEP_COUNT_PARAMETERS, cost_key
from kto_sweep.sweep.grid_status import GridStatus, count_missing
from kto_sweep.sweep.trial_state import TrialState
from kto_sweep.sweep.view import BusySpan, SweepView, TrialRecord
from kto_sweep.trial import PARAMETERS, lookup, settings_key, with_defaults

_COST_PARAMETERS = frozenset(PARAMETERS) - COST_NEUTRAL_PARAMETERS


@dataclass(frozen=True)
class GpuTime:
    """Seconds of all devices together; a CPU counts as one device."""

    spent: float
    remaining: float | None
    """Estimate for unfinished trials from finished ones of the same cost; None if no trial has finished or
    the sweep is unlimited."""
    unit: str
    """`GPU-hours`, `CPU-hours`, or `device-hours` if the devices are both or unknown."""


def gpu_time(view: SweepView, status: GridStatus) -> GpuTime:
    """The time that the sweep's trials have held their devices, and an estimate of what remains."""
    # A prior run was paid for by its own sweep.
    own = [trial for trial in view.trials if not trial.is_prior_run]
    spent, unit = spent_seconds(own), _unit(own)
    done = [cell.trial for cell in status.done if cell.trial and cell.trial.seconds]
    missing = count_missing(view, status)
    if not done or missing is None:
        return GpuTime(spent, None, unit)
    unended = [cell.trial for cell in status.cells if cell.trial and not cell.state.has_ended]
    if not unended and not missing:
        return GpuTime(spent, 0.0, unit)
    # Concurrent trials take less time of a device than the sum of their times; assume the same for the rest.
    lengths = sum(trial.seconds or 0.0 for trial in own)
    share = min(1.0, spent / lengths) if lengths else 1.0
    costs = _Costs()
    seconds_by_cost: dict[object, list[float]] = {}
    for trial in done:
        seconds_by_cost.setdefault(costs.of(trial.config), []).append(trial.seconds or 0.0)
    average = statistics.fmean(trial.seconds or 0.0 for trial in done)
    averages = {cost: statistics.fmean(seconds) for cost, seconds in seconds_by_cost.items()}

    def expected_seconds(config: Mapping[str, Any]) -> float:
        return averages.get(costs.of(config), average)

    remaining = sum(max(0.0, expected_seconds(trial.config) - (trial.seconds or 0.0)) for trial in unended)
    if status.lists_every_cell:
        remaining += sum(expected_seconds(cell.config) for cell in status.in_state(TrialState.NOT_STARTED))
    else:
        remaining += missing * average
    return GpuTime(spent, remaining * share, unit)


def seconds_per_trial(view: SweepView, trials: Iterable[TrialRecord]) -> float | None:
    """GPU-seconds that one more trial like these would take, trained among as many others as they were."""
    counted = [trial for trial in view.trials if view.is_counted(trial) and trial.seconds]
    times = [trial.seconds for trial in trials if trial.seconds]
    total = sum(trial.seconds or 0.0 for trial in counted)
    return statistics.fmean(times) * spent_seconds(counted) / total if times and total else None


def spent_seconds(trials: Iterable[TrialRecord]) -> float:
    """Seconds in which each device had at least one trial, plus all time of runs without a device."""
    spans_by_device: dict[str, list[BusySpan]] = {}
    total = 0.0
    for trial in trials:
        if not trial.busy:
            total += trial.seconds or 0.0
        for span in trial.busy:
            spans_by_device.setdefault(span.device, []).append(span)
    for device, spans in spans_by_device.items():
        total += _union_length(spans) * len(device.split(","))  # "gpus 0,1" train one trial together
    return total


def _unit(trials: Iterable[TrialRecord]) -> str:
    devices = {span.device for trial in trials for span in trial.busy}
    devices |= {trial.device for trial in trials if not trial.busy}
    on_cpu = {device.split()[-1:] == ["cpu"] for device in devices if device}
    if len(on_cpu) != 1 or "" in devices:
        return "device-hours"
    return "CPU-hours" if on_cpu == {True} else "GPU-hours"


def _union_length(spans: Iterable[BusySpan]) -> float:
    covered, reached = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        covered += max(0.0, span.end - max(span.start, reached))
        reached = max(reached, span.end)
    return covered


class _Costs:
    """Keys that are equal for trials that take the same time; computed once for equal settings."""

    def __init__(self) -> None:
        self._by_settings: dict[object, object] = {}

    def of(self, config: Mapping[str, Any]) -> object:
        """The key of a configuration."""
        settings = settings_key(config, _COST_PARAMETERS)
        if settings not in self._by_settings:
            full = with_defaults(config)
            steps = (repr(lookup(full, name)) for name in sorted(STEP_COUNT_PARAMETERS))
            self._by_settings[settings] = cost_key(full), *steps
        return self._by_settings[settings]
