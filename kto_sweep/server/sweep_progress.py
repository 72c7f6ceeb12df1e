"""Updates a sweep from new metrics: target, early termination, successive halving, and its end."""

import sqlite3
from collections.abc import Sequence

from kto_sweep.metrics import finite_number, summary_value
from kto_sweep.search import hyperband
from kto_sweep.server import successive_halving
from kto_sweep.server.states import ACTIVE, OVER, RunState, SweepState
from kto_sweep.server.store import lines, metrics, runs, sweeps
from kto_sweep.server.store.metrics import MetricValue
from kto_sweep.server.store.runs import Run
from kto_sweep.server.sweep_rules import SweepMetric, SweepRules, read_rules


def on_history_rows(connection: sqlite3.Connection, run: Run, offset: int, texts: Sequence[str]) -> None:
    """Records the sweep's metric from new history lines and applies target and early termination.

    `run` is the run before these lines were written.
    """
    sweep = sweeps.get(connection, run.sweep_id) if run.sweep_id is not None else None
    rules = read_rules(sweep.config) if sweep else None
    if sweep is None or rules is None or rules.metric is None:
        return
    values = _metric_values(rules.metric, offset, texts)
    rewritten = runs.rewrites(connection, run.id, lines.Stream.HISTORY) != run.history_rewrites
    reached = (
        _recompute_run(connection, run.id, rules.metric)
        if rewritten
        else metrics.replace_from(connection, run.id, offset, values)
    )
    if any(rules.metric.reached(value.value) for value in values):
        _finish_at_target(connection, sweep.id)
    rule = rules.early_termination
    if rule is not None and hyperband.band_reached(rule, reached) != hyperband.band_reached(
        rule, run.metric_count
    ):
        # Decisions can change only when a run reaches another band.
        _terminate_early(connection, sweep.id, rules, arrived=run)
    successive_halving.pause_if_behind(connection, rules, sweep, run.id)


def _metric_values(metric: SweepMetric, offset: int, texts: Sequence[str]) -> list[MetricValue]:
    values = []
    for number, text in enumerate(texts, offset):
        value = finite_number(lines.as_row(text) or {}, metric.name)
        if value is not None:
            values.append(MetricValue(number, value))
    return values


def _terminate_early(connection: sqlite3.Connection, sweep_id: int, rules: SweepRules, arrived: Run) -> None:
    """Requests a stop of every running run that early termination rejects.

    `arrived` is the run that just logged rows, in its state before them.
    """
    rule, metric = rules.early_termination, rules.metric
    if rule is None or metric is None:
        return
    peers: dict[int, list[float]] = {}

    def values_at(band: int) -> list[float]:
        if band not in peers:
            peers[band] = [value for _, value in metrics.at_ordinal(connection, sweep_id, band)]
        return peers[band]

    for run in runs.of_sweep(connection, sweep_id, [RunState.RUNNING]):
        if run.stop_requested or run.metric_count < rule.bands[0]:
            continue
        history = metrics.history(connection, run.id)
        judged = arrived.metric_count if run.id == arrived.id else None
        if hyperband.should_stop(rule, history, values_at, maximize=metric.maximize, judged=judged):
            runs.update(connection, run.id, stop_requested=True)


def on_summary(connection: sqlite3.Connection, run: Run) -> None:
    """Records the sweep's metric from the run's summary; finishes the sweep when it reaches the target."""
    sweep = sweeps.get(connection, run.sweep_id) if run.sweep_id is not None else None
    metric = read_rules(sweep.config).metric if sweep else None
    if sweep is None or metric is None:
        return
    value = summary_value(lines.as_row(run.summary) or {}, metric.name, maximize=metric.maximize)
    runs.update(connection, run.id, objective=metric.name, objective_value=value)
    if value is not None and metric.reached(value):
        _finish_at_target(connection, sweep.id)


def _finish_at_target(connection: sqlite3.Connection, sweep_id: int) -> None:
    """Assigns no new runs; running ones may finish, as on W&B."""
    sweeps.update(connection, sweep_id, exhausted=True, state=SweepState.FINISHED)


def finish_if_done(connection: sqlite3.Connection, sweep_id: int) -> None:
    """Finishes the sweep, with its paused runs, if the search is exhausted and no run is active."""
    sweep = sweeps.get(connection, sweep_id)
    if sweep is None:
        return
    if sweep.state not in OVER:
        if not sweep.exhausted:
            return
        active = runs.count_of_sweep(connection, sweep_id, ACTIVE) - len(runs.paused(connection, sweep_id))
        if active or successive_halving.promotable(connection, read_rules(sweep.config), sweep):
            return
        sweeps.update(connection, sweep_id, state=SweepState.FINISHED)
    successive_halving.end_paused(connection, sweep_id)


def recompute(connection: sqlite3.Connection, sweep_id: int) -> None:
    """Rereads the metric from all history of the sweep's runs, after its configuration changed."""
    for run in runs.of_sweep(connection, sweep_id):
        recompute_run(connection, run)


def recompute_run(connection: sqlite3.Connection, run: Run) -> None:
    """Rereads the metric of its sweep from the run's history and summary, after they were replaced."""
    sweep = sweeps.get(connection, run.sweep_id) if run.sweep_id is not None else None
    _recompute_run(connection, run.id, read_rules(sweep.config).metric if sweep else None)
    on_summary(connection, run)


def _recompute_run(connection: sqlite3.Connection, run_id: int, metric: SweepMetric | None) -> int:
    """Replaces the run's metric values by those of its history; returns how many there are."""
    values = [
        MetricValue(line.number, value)
        for line in lines.history_lines(connection, run_id)
        if metric and (value := finite_number(lines.as_row(line.text) or {}, metric.name)) is not None
    ]
    return metrics.replace_from(connection, run_id, 0, values)
