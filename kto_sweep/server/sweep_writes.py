"""Creates and changes sweeps for `upsertSweep`, and queues runs of a client-side scheduler."""

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from kto_sweep.server import refused, run_writes, sweep_progress
from kto_sweep.server.errors import RefusedError, RequestError
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.states import ACTIVE, ENDED, OVER, RunState, SweepState
from kto_sweep.server.store import projects, runs, sweeps
from kto_sweep.server.store.filters import FilterError, compile_filter
from kto_sweep.server.store.ids import from_global, new_name
from kto_sweep.server.store.runs import Run
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.suggest import preload
from kto_sweep.server.sweep_rules import SweepConfigError, SweepRules, read_rules

MAX_PRIOR_RUNS = 10_000


def upsert(
    connection: sqlite3.Connection, server: ServerState, fields: Mapping[str, Any]
) -> tuple[Sweep, tuple[str, ...]]:
    """Creates or updates a sweep; returns it and its configuration's problems. Raises RequestError."""
    if fields.get("launch_scheduler"):
        raise RequestError(refused.LAUNCH.sentence)
    rules = _rules(fields.get("config"))
    if rules is not None:
        preload(rules)
    if fields.get("id"):
        sweep = by_global_id(connection, fields["id"])
    elif rules is None:
        raise RequestError("a new sweep needs a config")
    else:
        sweep = _create(connection, server, fields)
    now = server.now()
    values = {
        column: fields[column]
        for column in ("display_name", "description", "controller", "scheduler")
        if fields.get(column)
    }
    if fields.get("id") and rules is not None:
        values |= {"config": fields["config"], "grid_cursor": 0, "exhausted": False}
    if fields.get("state"):
        values |= _new_state(fields["state"], started=bool(sweeps.agents(connection, sweep.id)))
    sweeps.update(connection, sweep.id, updated_at=now, **values)
    if fields.get("id") and rules is not None:
        runs.clear_cell_keys(connection, sweep.id)
        sweep_progress.recompute(connection, sweep.id)
    if values.get("state") is SweepState.CANCELED:
        _stop_all_runs(connection, sweep.id)
    if values.get("state") is SweepState.FINISHED:
        _kill_queued_runs(connection, sweep.id)
    if values.get("state") in OVER:
        sweep_progress.finish_if_done(connection, sweep.id)
    if rules is not None and rules.queue_only and sweep.controller_run_name is None:
        _add_controller_run(connection, server, sweep)
    changed = sweeps.get(connection, sweep.id)
    assert changed is not None
    return changed, rules.problems if rules else ()


def by_global_id(connection: sqlite3.Connection, global_id: str) -> Sweep:
    """The sweep of a global id. Raises RequestError for an unknown id."""
    row = from_global("Sweep", global_id)
    sweep = sweeps.get(connection, row) if row is not None else None
    if sweep is None:
        raise RequestError(f"there is no sweep with id {global_id}")
    return sweep


def _rules(config: str | None) -> SweepRules | None:
    """The rules of a configuration. Raises RefusedError for one that gives no trial."""
    if config is None:
        return None
    try:
        rules = read_rules(config)
    except SweepConfigError as problem:
        raise RefusedError(f"Invalid sweep config: {problem}") from problem
    if rules.refusal:
        raise RefusedError(f"Invalid sweep config: {rules.refusal}")
    return rules


def _create(connection: sqlite3.Connection, server: ServerState, fields: Mapping[str, Any]) -> Sweep:
    now = server.now()
    project = projects.ensure(connection, fields.get("entity_name"), fields.get("project_name"), now)
    name = new_name(server.rng)
    sweep = sweeps.insert(connection, project_id=project.id, name=name, config=fields["config"], now=now)
    if prior := fields.get("prior_runs_filters"):
        _add_prior_runs(connection, sweep, prior)
    return sweep


def _add_prior_runs(connection: sqlite3.Connection, sweep: Sweep, filters: str) -> None:
    """Adds the runs that match the filter to this sweep; runs of another sweep stay in that one too."""
    try:
        where = compile_filter(filters)
        if where.sql == "1":
            return
        where = where.and_also("run.project_id = ?", sweep.project_id)
        prior = runs.page(connection, where, None, MAX_PRIOR_RUNS)
    except FilterError as problem:
        raise RequestError(str(problem)) from problem
    for run in prior:
        if run.sweep_id is None:
            runs.update(connection, run.id, sweep_id=sweep.id)
        elif run.state in ENDED:
            runs.add_prior_run(connection, sweep.id, run.id)
    sweeps.update(connection, sweep.id, prior_runs=filters)
    sweep_progress.recompute(connection, sweep.id)


def _new_state(text: str, *, started: bool) -> dict[str, Any]:
    """The columns for a new state; `started`: whether the sweep ever had an agent."""
    try:
        state = SweepState(text.upper())
    except ValueError as problem:
        raise RequestError(f"{text!r} is not a sweep state") from problem
    if state is not SweepState.RUNNING:
        return {"state": state}
    # Resuming a finished sweep restarts its search. Before any agent started it, nothing runs.
    return {"state": state if started else SweepState.PENDING, "exhausted": False}


def _stop_all_runs(connection: sqlite3.Connection, sweep_id: int) -> None:
    """Kills waiting runs; requests a stop of the others."""
    for run in runs.of_sweep(connection, sweep_id, ACTIVE):
        waiting = run.state in (RunState.PENDING, RunState.PREEMPTED) and not run.picked_up
        state = RunState.KILLED if waiting else run.state
        runs.update(connection, run.id, state=state, stop_requested=True)


def _kill_queued_runs(connection: sqlite3.Connection, sweep_id: int) -> None:
    """Kills queued runs that were never assigned."""
    for run in runs.of_sweep(connection, sweep_id, [RunState.PENDING]):
        if run.handed_out == 0:
            runs.update(connection, run.id, state=RunState.KILLED)


def _add_controller_run(connection: sqlite3.Connection, server: ServerState, sweep: Sweep) -> None:
    """Creates the run of a client-side scheduler, which is not a trial."""
    run = runs.insert(
        connection,
        project_id=sweep.project_id,
        name=new_name(server.rng),
        state=RunState.PENDING,
        now=server.now(),
        rng=server.rng,
        display_name=f"controller-{sweep.name}",
    )
    sweeps.update(connection, sweep.id, controller_run_name=run.name)


def enqueue(connection: sqlite3.Connection, server: ServerState, fields: Mapping[str, Any]) -> Run:
    """Queues a run of a client-side scheduler for the next idle agent.

    Does not check the sweep's cap: schedulers enqueue batches and abort at the first error, so the cap is
    enforced at assignment. Raises RequestError when the sweep has ended.
    """
    sweep = by_global_id(connection, fields["id"])
    if sweep.state in OVER:
        raise RequestError(f"the sweep is {sweep.state.value.lower()}")
    config = run_writes.json_object(fields["config"], "config")
    values: dict[str, Any] = {"display_name": fields["display_name"]} if fields.get("display_name") else {}
    return runs.insert(
        connection,
        project_id=sweep.project_id,
        name=new_name(server.rng),
        state=RunState.PENDING,
        now=server.now(),
        rng=server.rng,
        sweep_id=sweep.id,
        suggested=run_writes.config_of(config),
        config=json.dumps(json.loads(config)),
        **values,
    )
