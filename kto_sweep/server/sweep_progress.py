"""What newly arrived metrics mean for a sweep: its target, early termination, and whether it is over."""

import math
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from kto_sweep.search import hyperband
from kto_sweep.server import successive_halving
from kto_sweep.server.states import ACTIVE, OVER, RunState, SweepState
from kto_sweep.server.store import lines, metrics, runs, sweeps
from kto_sweep.server.store.metrics import MetricValue
from kto_sweep.server.store.runs import Run
from kto_sweep.server.sweep_rules import Metric, SweepRules, read_rules


def on_history_rows(connection: sqlite3.Connection, run: Run, offset: int, texts: Sequence[str]) -> None:
    """Take the metric out of new history lines of a sweep's run, and act on it at once."""
    sweep = sweeps.get(connection, run.sweep_id) if run.sweep_id is not None else None
    rules = read_rules(sweep.config) if sweep else None
    if sweep is None or rules is None or rules.metric is None:
        return
    values = _metric_values(rules.metric, offset, texts)
    reached = metrics.replace_from(connection, run.id, offset, values)
    if any(rules.metric.reached(value.value) for value in values):
        _target_reached(connection, sweep.id)
    rule = rules.early_termination
    if rule is not None and hyperband.band_reached(rule, reached) != hyperband.band_reached(
        rule, run.metric_count
    ):
        # Only now can any verdict of this sweep have changed.
        _stop_bad_runs(connection, sweep.id, rules, arrived=run)
    successive_halving.pause_if_behind(connection, rules, sweep, run.id)


def _metric_values(metric: Metric, offset: int, texts: Sequence[str]) -> list[MetricValue]:
    values = []
    for number, text in enumerate(texts, offset):
        value = finite_number(lines.as_row(text) or {}, metric.name)
        if value is not None:
            values.append(MetricValue(number, value))
    return values


def finite_number(row: Mapping[str, Any], name: str) -> float | None:
    """The number under `name`, or under the path that its dots make; None for NaN and the like."""
    value: Any = row.get(name)
    if value is None and "." in name:
        value = row
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def summary_value(summary: Mapping[str, Any], metric: Metric) -> float | None:
    """The number that a run's summary has for the metric.

    Where the script's `define_metric` made an object of it: the best by the sweep's goal, or else the last.
    """
    extreme = "max" if metric.maximize else "min"
    found = (finite_number(summary, metric.name + part) for part in ("", f".{extreme}", ".best", ".last"))
    return next((value for value in found if value is not None), None)


def _stop_bad_runs(connection: sqlite3.Connection, sweep_id: int, rules: SweepRules, arrived: Run) -> None:
    """Ask every running run to stop that early termination finds too bad.

    `arrived` is the run whose rows have just come, as it stood before them.
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
    """Note what the run's summary says of its sweep's metric; finish the sweep when that is its target."""
    sweep = sweeps.get(connection, run.sweep_id) if run.sweep_id is not None else None
    metric = read_rules(sweep.config).metric if sweep else None
    if sweep is None or metric is None:
        return
    value = summary_value(lines.as_row(run.summary) or {}, metric)
    runs.update(connection, run.id, objective=metric.name, objective_value=value)
    if value is not None and metric.reached(value):
        _target_reached(connection, sweep.id)


def _target_reached(connection: sqlite3.Connection, sweep_id: int) -> None:
    """No new runs: those that run may end, as W&B has it."""
    sweeps.update(connection, sweep_id, exhausted=True, state=SweepState.FINISHED)


def finish_if_done(connection: sqlite3.Connection, sweep_id: int) -> None:
    """Finish the sweep if nothing is left to hand out and no run is alive; then no paused run goes on."""
    sweep = sweeps.get(connection, sweep_id)
    if sweep is None:
        return
    if sweep.state not in OVER:
        if not sweep.exhausted:
            return
        alive = runs.count_of_sweep(connection, sweep_id, ACTIVE) - len(runs.paused(connection, sweep_id))
        if alive or successive_halving.promotable(connection, read_rules(sweep.config), sweep):
            return
        sweeps.update(connection, sweep_id, state=SweepState.FINISHED)
    successive_halving.end_paused(connection, sweep_id)


def clear_values(connection: sqlite3.Connection, run_id: int) -> None:
    """Forget the run's metric values: its history was thrown away."""
    metrics.replace_from(connection, run_id, 0, [])


def recompute(connection: sqlite3.Connection, sweep_id: int) -> None:
    """Take the metric out of everything that the sweep's runs have logged: its configuration has changed."""
    sweep = sweeps.get(connection, sweep_id)
    metric = read_rules(sweep.config).metric if sweep else None
    for run in runs.of_sweep(connection, sweep_id):
        everything = lines.after(connection, run.id, lines.Stream.HISTORY, -1, -1)
        values = [
            MetricValue(line.number, value)
            for line in everything
            if metric and (value := finite_number(lines.as_row(line.text) or {}, metric.name)) is not None
        ]
        metrics.replace_from(connection, run.id, 0, values)
        on_summary(connection, run)
