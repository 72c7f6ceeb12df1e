"""What a sweep's runs tell a Bayesian search: their configurations and their values, imputed where needed."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace

from kto_sweep.search.bayes import Observation
from kto_sweep.search.objectives import Objective
from kto_sweep.server import objective, run_writes
from kto_sweep.server.states import ENDED, RunState
from kto_sweep.server.store import lines, runs
from kto_sweep.server.store.runs import Run
from kto_sweep.server.sweep_rules import Impute, Metric


def observations(
    connection: sqlite3.Connection, sweep_id: int, metric: Metric, others: Sequence[Objective] = ()
) -> list[Observation]:
    """All runs of the sweep, prior ones among them, oldest first.

    The value of a finished run is the best one in its history and its summary. One that ended otherwise, or
    without a value, has the one that the sweep's `metric.impute` says. Each has the configuration that the
    search chose for it, or was configured with when no search chose it. Of `others` counts what stands in a
    run's summary: one that did not end well has the worst of all, for what it took says nothing.
    """
    found = [
        *map(_of_its_summary, runs.taken_over(connection, sweep_id)),
        *runs.of_sweep(connection, sweep_id),
    ]
    worst = _worst_of_all([run for run in found if run.state in ENDED], metric)
    seen = [_observation(run, metric, worst) for run in found]
    return _with_costs(found, seen, others) if others else seen


def _with_costs(
    found: Sequence[Run], seen: Sequence[Observation], others: Sequence[Objective]
) -> list[Observation]:
    """The observations with the other objectives' values; without one of them, none is known."""
    summaries = [lines.as_row(run.summary) or {} for run in found]
    columns = [
        [
            None if (value := objective.finite_number(summary, each.name)) is None else each.loss(value)
            for summary in summaries
        ]
        for each in others
    ]
    worst = [
        _extreme([v for v, run in zip(c, found, strict=True) if run.state in ENDED], max) for c in columns
    ]
    told = []
    for run, one, own in zip(found, seen, zip(*columns, strict=True), strict=True):
        bad = run.state in ENDED and run.state is not RunState.FINISHED and not run.paused
        missing = run.state in ENDED
        costs = [
            w if bad or (value is None and missing) else value for value, w in zip(own, worst, strict=True)
        ]
        known = tuple(cost for cost in costs if cost is not None)
        if one.value is None or len(known) < len(costs):
            told.append(replace(one, value=None, pending=one.pending or not missing))
        else:
            told.append(replace(one, costs=known))
    return told


def _of_its_summary(run: Run) -> Run:
    """The run without what was read out of its history, for that was the metric of another sweep."""
    return replace(run, metric_low=None, metric_high=None, metric_last=None)


def _observation(run: Run, metric: Metric, worst: float | None) -> Observation:
    config = run_writes.chosen_config(run)
    if run.state is RunState.FINISHED:
        best = _imputed(run, metric, Impute.BEST, worst)
        return Observation(
            config, _imputed(run, metric, metric.impute, worst) if best is None else best, False
        )
    if run.paused and run.state in (RunState.PREEMPTED, RunState.KILLED):
        # Bad as it was, it says more of its place than the worst of all would.
        return Observation(config, _imputed(run, metric, Impute.BEST, worst), False)
    if run.state in ENDED:
        return Observation(config, _imputed(run, metric, metric.impute, worst), False)
    rule = metric.impute_while_running
    value = _imputed(run, metric, rule, worst) if rule and run.state is RunState.RUNNING else None
    return Observation(config, value, value is None)


def _imputed(run: Run, metric: Metric, rule: Impute, worst: float | None) -> float | None:
    """The value that the rule gives the run; None when there is nothing to take it from."""
    if rule is Impute.WORST:
        return worst
    summary = _summary_value(run, metric)
    if rule is Impute.LATEST:
        return summary if run.metric_last is None else run.metric_last
    best = run.metric_high if metric.maximize else run.metric_low
    return _extreme([best, summary], max if metric.maximize else min)


def _worst_of_all(ended: Sequence[Run], metric: Metric) -> float | None:
    """The worst value that any of these runs has logged."""
    values = [
        value
        for run in ended
        for value in (run.metric_low if metric.maximize else run.metric_high, _summary_value(run, metric))
    ]
    return _extreme(values, min if metric.maximize else max)


def _summary_value(run: Run, metric: Metric) -> float | None:
    if run.objective == metric.name:
        return run.objective_value
    return objective.in_summary(lines.as_row(run.summary) or {}, metric)


def _extreme(values: Sequence[float | None], pick: Callable[..., float]) -> float | None:
    known = [value for value in values if value is not None]
    return pick(known) if known else None
