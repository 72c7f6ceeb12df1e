"""Creating and changing sweeps as `UpsertSweep` asks, and queueing runs for a client-side scheduler."""

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from kto_sweep.server import run_writes, sweep_progress
from kto_sweep.server.errors import RequestError
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.states import ACTIVE, ENDED, OVER, RunState, SweepState
from kto_sweep.server.store import projects, runs, sweeps
from kto_sweep.server.store.filters import FilterError, compile_filter
from kto_sweep.server.store.ids import from_global, new_name
from kto_sweep.server.store.runs import Run
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.suggest import prepare
from kto_sweep.server.sweep_rules import SweepConfigError, SweepRules, read_rules

MAX_PRIOR_RUNS = 10_000


def upsert(
    connection: sqlite3.Connection, server: ServerState, wanted: Mapping[str, Any]
) -> tuple[Sweep, tuple[str, ...]]:
    """The sweep, created or changed, and what is wrong with its configuration. Raises RequestError."""
    if wanted.get("launch_scheduler"):
        raise RequestError(
            "this server has no launch queues: use `wandb sweep`, and `wandb agent` on each box"
        )
    rules = _rules(wanted.get("config"))
    if rules is not None:
        prepare(rules)
    if wanted.get("id"):
        sweep = by_opaque_id(connection, wanted["id"])
    elif rules is None:
        raise RequestError("a new sweep needs a config")
    else:
        sweep = _create(connection, server, wanted)
    now = server.now()
    values = {
        column: wanted[column]
        for column in ("display_name", "description", "controller", "scheduler")
        if wanted.get(column)
    }
    if wanted.get("id") and rules is not None:
        values |= {"config": wanted["config"], "grid_cursor": 0, "exhausted": False}
    if wanted.get("state"):
        values |= _new_state(wanted["state"])
    sweeps.update(connection, sweep.id, updated_at=now, **values)
    if wanted.get("id") and rules is not None:
        runs.forget_cell_keys(connection, sweep.id)
        sweep_progress.recompute(connection, sweep.id)
    if values.get("state") is SweepState.CANCELED:
        _stop_all(connection, sweep.id)
    if values.get("state") is SweepState.FINISHED:
        _drop_queue(connection, sweep.id)
    if values.get("state") in OVER:
        sweep_progress.finish_if_done(connection, sweep.id)
    if rules is not None and rules.queue_only and sweep.controller_run_name is None:
        _add_controller_run(connection, server, sweep)
    changed = sweeps.get(connection, sweep.id)
    assert changed is not None
    return changed, rules.problems if rules else ()


def by_opaque_id(connection: sqlite3.Connection, opaque: str) -> Sweep:
    """The sweep of an opaque id. Raises RequestError when there is none."""
    row = from_global("Sweep", opaque)
    sweep = sweeps.get(connection, row) if row is not None else None
    if sweep is None:
        raise RequestError(f"there is no sweep with id {opaque}")
    return sweep


def _rules(config: str | None) -> SweepRules | None:
    if config is None:
        return None
    try:
        return read_rules(config)
    except SweepConfigError as problem:
        raise RequestError(str(problem)) from problem


def _create(connection: sqlite3.Connection, server: ServerState, wanted: Mapping[str, Any]) -> Sweep:
    now = server.now()
    project = projects.ensure(connection, wanted.get("entity_name"), wanted.get("project_name"), now)
    name = new_name(server.rng)
    sweep = sweeps.insert(connection, project_id=project.id, name=name, config=wanted["config"], now=now)
    if prior := wanted.get("prior_runs_filters"):
        _adopt_prior_runs(connection, sweep, prior)
    return sweep


def _adopt_prior_runs(connection: sqlite3.Connection, sweep: Sweep, filters: str) -> None:
    """Make the runs that the filter names runs of this sweep; those of another sweep stay there as well."""
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


def _new_state(text: str) -> dict[str, Any]:
    try:
        state = SweepState(text.upper())
    except ValueError as problem:
        raise RequestError(f"{text!r} is not a sweep state") from problem
    # Who resumes a finished sweep wants its search to be asked again.
    return {"state": state, "exhausted": False} if state is SweepState.RUNNING else {"state": state}


def _stop_all(connection: sqlite3.Connection, sweep_id: int) -> None:
    """Waiting runs end here; file_stream and their agent's heartbeat tell the others to stop."""
    for run in runs.of_sweep(connection, sweep_id, ACTIVE):
        waiting = run.state in (RunState.PENDING, RunState.PREEMPTED) and not run.picked_up
        state = RunState.KILLED if waiting else run.state
        runs.update(connection, run.id, state=state, stop_requested=True)


def _drop_queue(connection: sqlite3.Connection, sweep_id: int) -> None:
    """Queued runs that no agent has ever been given will not be done any more."""
    for run in runs.of_sweep(connection, sweep_id, [RunState.PENDING]):
        if run.handed_out == 0:
            runs.update(connection, run.id, state=RunState.KILLED)


def _add_controller_run(connection: sqlite3.Connection, server: ServerState, sweep: Sweep) -> None:
    """The run under which a client-side scheduler reports; it is no trial."""
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


def enqueue(connection: sqlite3.Connection, server: ServerState, wanted: Mapping[str, Any]) -> Run:
    """A run that a client-side scheduler wants done, for the next free agent.

    It may be one more than the sweep's cap: a scheduler asks for batches and gives up at the first error,
    so the cap is kept when runs are handed out. Raises RequestError when the sweep is over.
    """
    sweep = by_opaque_id(connection, wanted["id"])
    if sweep.state in OVER:
        raise RequestError(f"the sweep is {sweep.state.value.lower()}")
    config = run_writes.json_object(wanted["config"], "config")
    values: dict[str, Any] = {"display_name": wanted["display_name"]} if wanted.get("display_name") else {}
    return runs.insert(
        connection,
        project_id=sweep.project_id,
        name=new_name(server.rng),
        state=RunState.PENDING,
        now=server.now(),
        rng=server.rng,
        sweep_id=sweep.id,
        suggested=run_writes.plain_config(config),
        config=json.dumps(json.loads(config)),
        **values,
    )
