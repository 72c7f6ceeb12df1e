"""Observations for Bayesian search: each run's configuration and value, imputed where it has none."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace

from kto_sweep.metrics import finite_number, summary_value
from kto_sweep.search.bayes import Observation
from kto_sweep.search.objectives import Objective
from kto_sweep.server import run_writes
from kto_sweep.server.states import ENDED, RunState
from kto_sweep.server.store import lines, runs
from kto_sweep.server.store.runs import Run
from kto_sweep.server.sweep_rules import Impute, SweepMetric
from kto_sweep.sweep.view import HEALTH, UNSTABLE


def observations(
    connection: sqlite3.Connection, sweep_id: int, metric: SweepMetric, others: Sequence[Objective] = ()
) -> list[Observation]:
    """Observations of all the sweep's runs including prior runs, oldest first.

    A finished run's value is the best of its history and summary. A run that failed, or has no value, gets
    the value of the sweep's `metric.impute`. The configuration is the one that the search chose; for a prior
    run, or if no search chose it, the run's own. `others` (further objectives) are read from the summary; a
    run that did not finish gets the worst of all runs, because its cost so far is not comparable.
    """
    sweep_runs = [
        *map(_as_prior_run, runs.prior_runs(connection, sweep_id)),
        *runs.of_sweep(connection, sweep_id),
    ]
    sweep_runs = list(map(_failed_if_unstable, sweep_runs))
    worst = _worst_of_all([run for run in sweep_runs if run.state in ENDED], metric)
    seen = [_observation(run, metric, worst) for run in sweep_runs]
    return _with_costs(sweep_runs, seen, others) if others else seen


def _with_costs(
    sweep_runs: Sequence[Run], seen: Sequence[Observation], others: Sequence[Objective]
) -> list[Observation]:
    """The observations with the other objectives' losses; an observation that lacks one has no value."""
    summaries = [lines.as_row(run.summary) or {} for run in sweep_runs]
    columns = [
        [
            None if (value := finite_number(summary, objective.name)) is None else objective.loss(value)
            for summary in summaries
        ]
        for objective in others
    ]
    worst = [
        _extreme([v for v, run in zip(c, sweep_runs, strict=True) if run.state in ENDED], max)
        for c in columns
    ]
    observations_with_costs = []
    for run, one, own in zip(sweep_runs, seen, zip(*columns, strict=True), strict=True):
        failed = run.state in ENDED and run.state is not RunState.FINISHED and not run.paused
        missing = run.state in ENDED
        costs = [
            w if failed or (value is None and missing) else value for value, w in zip(own, worst, strict=True)
        ]
        values = tuple(cost for cost in costs if cost is not None)
        if one.value is None or len(values) < len(costs):
            observations_with_costs.append(replace(one, value=None, pending=one.pending or not missing))
        else:
            observations_with_costs.append(replace(one, costs=values))
    return observations_with_costs


def _as_prior_run(run: Run) -> Run:
    """The run without the metric values from its history, which are those of another sweep's metric.

    And without what that sweep's search chose: its own configuration also has the defaults.
    """
    return replace(run, suggested=None, metric_low=None, metric_high=None, metric_last=None)


def _failed_if_unstable(run: Run) -> Run:
    """A run whose training broke counts as failed, though it took its last step: its value means nothing."""
    if run.state is RunState.FINISHED and (lines.as_row(run.summary) or {}).get(HEALTH) == UNSTABLE:
        return replace(run, state=RunState.FAILED)
    return run


def _observation(run: Run, metric: SweepMetric, worst: float | None) -> Observation:
    config = run_writes.chosen_config(run)
    if run.state is RunState.FINISHED:
        best = _imputed(run, metric, Impute.BEST, worst)
        return Observation(
            config, _imputed(run, metric, metric.impute, worst) if best is None else best, False
        )
    if run.paused and run.state in (RunState.PREEMPTED, RunState.KILLED):
        # Its own best value is more informative than the worst of all runs.
        return Observation(config, _imputed(run, metric, Impute.BEST, worst), False)
    if run.state in ENDED:
        return Observation(config, _imputed(run, metric, metric.impute, worst), False)
    rule = metric.impute_while_running
    value = _imputed(run, metric, rule, worst) if rule and run.state is RunState.RUNNING else None
    return Observation(config, value, value is None)


def _imputed(run: Run, metric: SweepMetric, rule: Impute, worst: float | None) -> float | None:
    """The run's value by the imputation rule; None without data."""
    if rule is Impute.WORST:
        return worst
    summary = _summary_value(run, metric)
    if rule is Impute.LATEST:
        return summary if run.metric_last is None else run.metric_last
    best = run.metric_high if metric.maximize else run.metric_low
    return _extreme([best, summary], max if metric.maximize else min)


def _worst_of_all(ended: Sequence[Run], metric: SweepMetric) -> float | None:
    """The worst value that any of these runs logged."""
    values = [
        value
        for run in ended
        for value in (run.metric_low if metric.maximize else run.metric_high, _summary_value(run, metric))
    ]
    return _extreme(values, min if metric.maximize else max)


def _summary_value(run: Run, metric: SweepMetric) -> float | None:
    if run.objective == metric.name:
        return run.objective_value
    return summary_value(lines.as_row(run.summary) or {}, metric.name, maximize=metric.maximize)


def _extreme(values: Sequence[float | None], pick: Callable[..., float]) -> float | None:
    present = [value for value in values if value is not None]
    return pick(present) if present else None
