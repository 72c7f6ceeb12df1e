"""Asynchronous successive halving (ASHA) on the server: pauses runs and promotes paused ones.

To pause a run, the server sets `paused` and requests a stop. When its process has exited, the run is
`preempted`, a state that every client knows; `paused` prevents it from being assigned before it is promoted.
"""

import sqlite3

from kto_sweep.search import asha
from kto_sweep.server.states import RunState
from kto_sweep.server.store import metrics, runs
from kto_sweep.server.store.runs import Run
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_rules import SweepRules


def pause_if_behind(connection: sqlite3.Connection, rules: SweepRules, sweep: Sweep, run_id: int) -> None:
    """Pauses a run that just logged rows, if it is not among the best at its band."""
    rule, metric, run = rules.options.asha, rules.metric, runs.get(connection, run_id)
    if rule is None or metric is None or run is None:
        return
    if run.state is not RunState.RUNNING or run.stop_requested:
        return
    rung, pauses = asha.pauses_at(
        rule,
        run.id,
        run.rung,
        run.metric_count,
        lambda band: metrics.at_ordinal(connection, sweep.id, band),
        maximize=metric.maximize,
        least=int(sweep.exhausted),
    )
    if rung != run.rung:
        runs.update(connection, run.id, rung=rung, paused=pauses, stop_requested=pauses)


def promotable(connection: sqlite3.Connection, rules: SweepRules, sweep: Sweep) -> list[Run]:
    """The paused runs to promote, in order."""
    rule, metric = rules.options.asha, rules.metric
    if rule is None or metric is None:
        return []
    paused = {run.id: run for run in runs.paused(connection, sweep.id)}
    run_ids = asha.promotable(
        rule,
        {run.id: run.rung for run in paused.values()},
        lambda band: metrics.at_ordinal(connection, sweep.id, band),
        maximize=metric.maximize,
        least=int(sweep.exhausted),
    )
    return [paused[run_id] for run_id in run_ids]


def end_paused(connection: sqlite3.Connection, sweep_id: int) -> None:
    """Marks paused runs as killed, like any run that was stopped early, because the sweep has ended."""
    for run in runs.paused(connection, sweep_id):
        runs.update(connection, run.id, state=RunState.KILLED)


def state_when_stopped(run: Run) -> RunState:
    """Final state of a run that stopped on request."""
    return RunState.PREEMPTED if run.paused else RunState.KILLED
