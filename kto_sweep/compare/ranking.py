"""Which trial won: the trials of a sweep in order of its metric."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kto_sweep.sweep.view import SweepView, TrialRecord
from kto_sweep.trial import lookup

FIXED_COLUMNS = ("rewards/margins", "kl", "gpu/memory_peak_gb")
"""Metrics that a comparison always shows beside the ranking one."""


@dataclass(frozen=True)
class Ranked:
    """A trial and its place."""

    rank: int | None
    """1 is the best; None without a finite value of the metric."""
    value: float | None
    trial: TrialRecord


def rank(trials: Iterable[TrialRecord], metric: str, goal: str) -> list[Ranked]:
    """The trials, best first; those without a finite value last, in order of creation.

    Trials of any state take part, as in `best_run()` of wandb.Api: a stopped trial's value counts.
    """
    valued = [(trial.value(metric), trial) for trial in trials]
    sign = -1 if goal == "maximize" else 1
    with_value = sorted(
        ((value, trial) for value, trial in valued if value is not None), key=lambda pair: sign * pair[0]
    )
    ranked = [Ranked(place, value, trial) for place, (value, trial) in enumerate(with_value, start=1)]
    return ranked + [Ranked(None, None, trial) for value, trial in valued if value is None]


def varied(view: SweepView) -> tuple[str, ...]:
    """Dotted names of the parameters that the sweep searches; where unknown, of those that differ."""
    searched = tuple(".".join(parameter.path) for parameter in view.space.searched)
    if searched:
        return searched
    names = dict.fromkeys(name for trial in view.trials for name in trial.config)
    return tuple(
        name for name in names if len({repr(lookup(trial.config, name)) for trial in view.trials}) > 1
    )


def columns(view: SweepView, metric: str) -> list[str]:
    """Metrics to show: the ranking one, the other objectives, then those of FIXED_COLUMNS that any has."""
    shown = list(dict.fromkeys([metric, *(each.name for each in view.objectives)]))
    for name in FIXED_COLUMNS:
        if name not in shown and any(_is_number(trial.summary.get(name)) for trial in view.trials):
            shown.append(name)
    return shown


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def csv_rows(ranked: Sequence[Ranked], parameters: Sequence[str], metrics: Sequence[str]) -> list[list[Any]]:
    """Header and rows: rank, run, state, minutes, the varied parameters, the metrics."""
    rows: list[list[Any]] = [["rank", "run_id", "name", "state", "failure", "minutes", *parameters, *metrics]]
    for item in ranked:
        trial = item.trial
        minutes = None if trial.seconds is None else round(trial.seconds / 60, 2)
        rows.append(
            [item.rank, trial.run_id, trial.name, trial.state, trial.failure, minutes]
            + [lookup(trial.config, name) for name in parameters]
            + [trial.summary.get(name) for name in metrics]
        )
    return rows
