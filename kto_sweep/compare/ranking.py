"""The trials of a sweep ranked by a metric."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kto_sweep.compare.eval_groups import eval_groups
from kto_sweep.fingerprints import TrainedRun
from kto_sweep.sweep.view import SweepView, TrialRecord
from kto_sweep.trial import lookup

FIXED_COLUMNS = ("rewards/margins", "kl", "gpu/memory_peak_gb")
"""Metrics that a comparison always shows next to the ranking metric."""


@dataclass(frozen=True)
class RankedTrial:
    """A trial and its rank."""

    rank: int | None
    """1 is the best of its group; None without a finite value of the metric."""
    value: float | None
    trial: TrialRecord
    group: str = ""
    """The name of its eval_groups group; empty if all trials are in one."""


def rank(trials: Iterable[TrialRecord], metric: str, goal: str) -> list[RankedTrial]:
    """The trials, best first; those without a finite value last, in order of creation.

    Each group of trials that were judged on the same rows has its own ranks, and stands together.
    Includes trials in any state, as wandb.Api's `best_run()` does: the value of a stopped trial counts.
    """
    trials = list(trials)
    groups = eval_groups([TrainedRun.of(each.run_id, each.config, each.summary) for each in trials], [metric])
    valued: dict[str, list[tuple[float, TrialRecord]]] = {}
    without_value = []
    for trial, group in zip(trials, groups, strict=True):
        value = trial.value(metric)
        if value is None:
            without_value.append(RankedTrial(None, None, trial, group))
        else:
            valued.setdefault(group, []).append((value, trial))
    sign = -1 if goal == "maximize" else 1
    ranked = []
    for group, pairs in valued.items():
        best_first = sorted(pairs, key=lambda pair: sign * pair[0])
        ranked += [RankedTrial(place, *pair, group) for place, pair in enumerate(best_first, start=1)]
    return ranked + without_value


def searched_parameters(view: SweepView) -> tuple[str, ...]:
    """Dotted names of the searched parameters, or of those that differ if the space is unknown."""
    searched = tuple(".".join(parameter.path) for parameter in view.space.searched)
    if searched:
        return searched
    names = dict.fromkeys(name for trial in view.trials for name in trial.config)
    return tuple(
        name for name in names if len({repr(lookup(trial.config, name)) for trial in view.trials}) > 1
    )


def metric_columns(view: SweepView, metric: str) -> list[str]:
    """Metrics to show: the ranking metric, the other objectives, then logged FIXED_COLUMNS."""
    shown = list(dict.fromkeys([metric, *(objective.name for objective in view.objectives)]))
    for name in FIXED_COLUMNS:
        if name not in shown and any(_is_number(trial.summary.get(name)) for trial in view.trials):
            shown.append(name)
    return shown


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def csv_rows(
    ranked: Sequence[RankedTrial], parameters: Sequence[str], metrics: Sequence[str]
) -> list[list[Any]]:
    """Header and one row for each trial: rank, run, state, minutes, parameters, metrics.

    With several groups of eval_groups, also `judged_on`, the group in which the trial has its rank.
    """
    grouped = any(item.group for item in ranked)
    group_column = ["judged_on"] if grouped else []
    rows: list[list[Any]] = [
        ["rank", *group_column, "run_id", "name", "state", "failure", "minutes", *parameters, *metrics]
    ]
    for item in ranked:
        trial = item.trial
        minutes = None if trial.seconds is None else round(trial.seconds / 60, 2)
        rows.append(
            [
                item.rank,
                *([item.group] if grouped else []),
                trial.run_id,
                trial.name,
                trial.state,
                trial.failure,
                minutes,
            ]
            + [lookup(trial.config, name) for name in parameters]
            + [trial.summary.get(name) for name in metrics]
        )
    return rows
