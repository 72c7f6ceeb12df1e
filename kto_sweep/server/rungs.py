"""Asynchronous successive halving on the server: which runs pause, which go on, and which will not any more.

A run that is to pause is asked to stop like any other, and marked as paused. Once its process has ended it is
`preempted`, which every client knows; the mark keeps it from being handed out before it may go on.
"""

import sqlite3

from kto_sweep.search import asha
from kto_sweep.server.states import RunState
from kto_sweep.server.store import metrics, runs
from kto_sweep.server.store.runs import Run
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_rules import SweepRules


def judge(connection: sqlite3.Connection, rules: SweepRules, sweep: Sweep, run_id: int) -> None:
    """Have a run whose rows have just come pause, if it is not among the best at a band."""
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
    """The paused runs that may go on, in the order in which they should."""
    rule, metric = rules.options.asha, rules.metric
    if rule is None or metric is None:
        return []
    paused = {run.id: run for run in runs.paused(connection, sweep.id)}
    found = asha.promotable(
        rule,
        {run.id: run.rung for run in paused.values()},
        lambda band: metrics.at_ordinal(connection, sweep.id, band),
        maximize=metric.maximize,
        least=int(sweep.exhausted),
    )
    return [paused[run_id] for run_id in found]


def end_paused(connection: sqlite3.Connection, sweep_id: int) -> None:
    """The sweep is over: what is paused stays as it is, like any run that was stopped early."""
    for run in runs.paused(connection, sweep_id):
        runs.update(connection, run.id, state=RunState.KILLED)


def state_when_stopped(run: Run) -> RunState:
    """The state of a run that was asked to stop, when it has."""
    return RunState.PREEMPTED if run.paused else RunState.KILLED
