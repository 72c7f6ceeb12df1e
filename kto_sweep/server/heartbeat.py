"""Agent heartbeats: record the reported runs, decide the next command, create the run of a new trial."""

import json
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from kto_sweep.server import run_writes, successive_halving, sweep_progress
from kto_sweep.server.errors import NotFoundError, RequestError
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.states import RunState, SweepState
from kto_sweep.server.store import projects, runs, sweeps
from kto_sweep.server.store.ids import from_global, new_name
from kto_sweep.server.store.runs import Run
from kto_sweep.server.store.sweeps import Agent, Sweep
from kto_sweep.server.suggest import Suggestion, preload, suggest
from kto_sweep.server.sweep_machine import (
    AssignRun,
    Decision,
    Exit,
    HeartbeatContext,
    StopRuns,
    SuggestTrial,
    Wait,
    decide,
    state_when_unreported,
)
from kto_sweep.server.sweep_rules import SweepRules, read_rules

AGENT_TIMEOUT = 180.0
"""Seconds without a heartbeat after which an agent's pending runs go to other agents. A client that lost the
server for a minute backs off for another minute, and `wandb.init` gives up after 90 s."""
SEARCH_LOCK_TIMEOUT = 1.0
"""Seconds that a heartbeat waits for another agent's search before it returns without a command. A Bayesian
search may take longer, and waiting heartbeats hold threads that other requests need."""
MAX_REPORTED = 1000
"""Maximum runs in one agent's report."""

Command = dict[str, Any]


@dataclass(frozen=True)
class _AgentSweep:
    """The agent that sends the heartbeat, and its sweep."""

    agent: Agent
    sweep: Sweep
    rules: SweepRules


def register_agent(connection: sqlite3.Connection, server: ServerState, fields: dict[str, Any]) -> Agent:
    """Registers an agent; the first one starts the sweep. Raises NotFoundError for an unknown sweep."""
    project = projects.find(connection, fields.get("entity_name"), fields.get("project_name"))
    sweep = sweeps.find(connection, project.id, fields["sweep"]) if project else None
    if sweep is None:
        raise NotFoundError(f"there is no sweep {fields['sweep']}")
    now = server.now()
    if sweep.state is SweepState.PENDING:
        sweeps.update(connection, sweep.id, state=SweepState.RUNNING, updated_at=now)
    name = new_name(server.rng)
    return sweeps.insert_agent(connection, sweep_id=sweep.id, name=name, host=fields["host"], now=now)


def handle(server: ServerState, agent_id: str, run_state: str | None) -> tuple[Agent, list[Command]]:
    """The agent and its commands.

    Raises NotFoundError for an unknown agent or sweep, RequestError for bad input.
    """
    row = from_global("Agent", agent_id)
    agent = sweeps.get_agent(server.database.reader(), row) if row is not None else None
    if agent is None:
        raise NotFoundError("unknown agent; its sweep may have been deleted")
    reported = _reported_names(run_state)
    caller, decision = server.database.write(lambda c: _record_and_decide(c, server, agent, reported))
    if isinstance(decision, SuggestTrial):
        caller, decision = _search(server, caller, reported)
    preload(caller.rules)  # for a sweep registered before the server started
    return agent, _commands(caller, decision)


def _search(
    server: ServerState, caller: _AgentSweep, reported: Collection[str]
) -> tuple[_AgentSweep, Decision]:
    """Assigns a new trial to an idle agent; Wait when another agent's search takes too long."""
    lock = server.locks.of(caller.sweep.id)
    if not lock.acquire(timeout=SEARCH_LOCK_TIMEOUT):
        return caller, Wait()
    try:
        # Decide again under the lock: another agent may have taken the last trial meanwhile.
        caller, decision = server.database.write(
            lambda c: _record_and_decide(c, server, caller.agent, reported)
        )
        if isinstance(decision, SuggestTrial):
            suggestion = suggest(server.database.reader(), caller.sweep, caller.rules, server.rng)
            decision = server.database.write(lambda c: _assign_suggested(c, server, caller, suggestion))
        return caller, decision
    finally:
        lock.release()


def _reported_names(run_state: str | None) -> frozenset[str]:
    try:
        states = json.loads(run_state or "{}")
    except (ValueError, RecursionError) as problem:
        raise RequestError(f"runState is not JSON: {problem}") from problem
    if not isinstance(states, dict) or len(states) > MAX_REPORTED:
        raise RequestError("runState is not a JSON object of the agent's runs")
    return frozenset(name for name, running in states.items() if running)


def _record_and_decide(
    connection: sqlite3.Connection, server: ServerState, agent: Agent, names: Collection[str]
) -> tuple[_AgentSweep, Decision]:
    """Records the heartbeat and the reported runs, then decides the next command."""
    now = server.now()
    sweeps.touch_agent(connection, agent, now)
    reported = _record_reported(connection, agent, names, now)
    deleted = _deleted(connection, agent, names)
    _close_unreported(connection, agent, names)
    sweep_progress.finish_if_done(connection, agent.sweep_id)
    sweep = sweeps.get(connection, agent.sweep_id)
    if sweep is None:
        raise NotFoundError("the sweep was deleted")
    caller = _AgentSweep(agent, sweep, read_rules(sweep.config))
    decision = decide(_context(connection, server, caller, reported, deleted))
    if isinstance(decision, AssignRun):
        _assign(connection, agent, decision.run, now)
    return caller, decision


def _record_reported(
    connection: sqlite3.Connection, agent: Agent, names: Collection[str], now: float
) -> list[Run]:
    """Assigns the reported runs of the sweep to the agent, refreshes their heartbeats and returns them."""
    reported = []
    project_id = _project_of(connection, agent.sweep_id)
    for name in names:
        run = runs.find(connection, project_id, name)
        if run is None or run.sweep_id != agent.sweep_id:
            continue
        runs.update(connection, run.id, agent_id=agent.id, picked_up=True, heartbeat_at=now)
        reported.append(run)
    return reported


def _deleted(connection: sqlite3.Connection, agent: Agent, names: Collection[str]) -> list[str]:
    """Names of reported runs that were deleted: the agent must end them before it gets another run.

    The process of a deleted run may have recreated it without a sweep by sending its configuration.
    """
    project_id = _project_of(connection, agent.sweep_id)
    by_name = {name: runs.find(connection, project_id, name) for name in names}
    return sorted(name for name, run in by_name.items() if run is None or run.sweep_id != agent.sweep_id)


def _project_of(connection: sqlite3.Connection, sweep_id: int) -> int:
    return int(connection.execute("SELECT project_id FROM sweep WHERE id = ?", (sweep_id,)).fetchone()[0])


def _close_unreported(connection: sqlite3.Connection, agent: Agent, names: Collection[str]) -> None:
    """Ends the agent's runs that it stopped reporting."""
    for run in runs.of_agent(connection, agent.id, (RunState.PENDING, RunState.RUNNING)):
        state = state_when_unreported(run)
        if run.name not in names and state is not run.state:
            runs.update(connection, run.id, state=state)


def _context(
    connection: sqlite3.Connection,
    server: ServerState,
    caller: _AgentSweep,
    reported: list[Run],
    deleted: Sequence[str] = (),
) -> HeartbeatContext:
    agent, sweep = caller.agent, caller.sweep
    waiting = runs.of_sweep(connection, sweep.id, (RunState.PENDING, RunState.PREEMPTING, RunState.PREEMPTED))
    names = {run.name for run in reported}
    cap = caller.rules.run_cap
    below_cap = cap is None or runs.count_handed_out(connection, sweep.id) < cap
    lost, preempted, orphaned, held = [], [], [], 0
    for run in waiting:
        if run.state is RunState.PREEMPTED:
            preempted += [] if run.paused else [run]
        elif run.state is RunState.PENDING and run.agent_id == agent.id:
            if run.name not in names:
                lost.append(run)
        elif run.state is RunState.PENDING and _is_orphan(connection, server, run):
            orphaned += [run] if run.handed_out or below_cap else []
        else:
            held += 1
    local, elsewhere = _promotable(connection, server, caller)
    if any(run.paused for run in waiting):  # running runs may yet promote a paused one
        held += runs.count_of_sweep(connection, sweep.id, (RunState.RUNNING,))
    return HeartbeatContext(
        sweep_state=sweep.state,
        exhausted=sweep.exhausted,
        reported=reported,
        deleted=deleted,
        lost=lost,
        available=preempted + orphaned + local,
        elsewhere=elsewhere,
        others_may_return_runs=held > 0,
        queue_only=caller.rules.queue_only,
    )


def _promotable(
    connection: sqlite3.Connection, server: ServerState, caller: _AgentSweep
) -> tuple[list[Run], list[Run]]:
    """The promotable paused runs: those for this agent, and those better left to agents on other hosts.

    On another host a run has no checkpoint and restarts from the beginning.
    """
    promotable = successive_halving.promotable(connection, caller.rules, caller.sweep)
    if not promotable:
        return [], []
    online = {
        _host(agent)
        for agent in sweeps.agents(connection, caller.sweep.id)
        if server.clock.seconds_since(agent.heartbeat_at) < AGENT_TIMEOUT
    }
    same_host = [run for run in promotable if run.host == _host(caller.agent)]
    no_host = [run for run in promotable if run.host not in online | {_host(caller.agent)}]
    own = same_host + no_host
    return own, [run for run in promotable if run not in own]


def _host(agent: Agent) -> str:
    """The machine's name; kto-sweep agents append their device."""
    return agent.host.partition(" ")[0]


def _is_orphan(connection: sqlite3.Connection, server: ServerState, run: Run) -> bool:
    """Whether a pending run has no live agent: it is queued, or its agent timed out."""
    holder = sweeps.get_agent(connection, run.agent_id) if run.agent_id is not None else None
    if holder is None or run.assigned_at is None:
        return True
    return server.clock.seconds_since(holder.heartbeat_at, run.assigned_at) > AGENT_TIMEOUT


def _assign(connection: sqlite3.Connection, agent: Agent, run: Run, now: float) -> None:
    runs.update(
        connection,
        run.id,
        state=RunState.PENDING,
        agent_id=agent.id,
        picked_up=False,
        stop_requested=False,
        paused=False,
        handed_out=run.handed_out + 1 if run.state is RunState.PENDING else 1,
        assigned_at=now,
        heartbeat_at=now,
    )


def _assign_suggested(
    connection: sqlite3.Connection, server: ServerState, caller: _AgentSweep, suggestion: Suggestion | None
) -> Decision:
    """Creates a run for the suggested trial and assigns it; without a suggestion the sweep is exhausted.

    Wait when the sweep changed or ended during the search.
    """
    sweep, now = caller.sweep, server.now()
    current = sweeps.get(connection, sweep.id)
    if current is None or (current.state, current.config) != (sweep.state, sweep.config):
        return Wait()
    if suggestion is None:
        sweeps.update(connection, sweep.id, exhausted=True)
        sweep_progress.finish_if_done(connection, sweep.id)
        changed = sweeps.get(connection, sweep.id) or sweep
        return decide(_context(connection, server, _AgentSweep(caller.agent, changed, caller.rules), []))
    run = runs.insert(
        connection,
        project_id=sweep.project_id,
        name=new_name(server.rng),
        state=RunState.PENDING,
        now=now,
        rng=server.rng,
        sweep_id=sweep.id,
        suggested=suggestion.config,
        cell_key=suggestion.cell_key,
        config=run_writes.as_config_json(suggestion.config),
    )
    _assign(connection, caller.agent, run, now)
    runs.set_cell_keys(connection, suggestion.cell_keys)
    sweeps.update(
        connection,
        sweep.id,
        grid_cursor=suggestion.grid_cursor,
        exhausted=suggestion.is_last,
        updated_at=now,
    )
    return AssignRun(run)


def _commands(caller: _AgentSweep, decision: Decision) -> list[Command]:
    """The decision as commands of the agent protocol."""
    if isinstance(decision, StopRuns):
        return [{"type": "stop", "run_id": name} for name in decision.names]
    if isinstance(decision, Exit):
        return [{"type": "exit"}]
    if not isinstance(decision, AssignRun):
        return []
    run = decision.run
    chosen = run_writes.chosen_config(run)
    return [
        {
            "type": "resume" if run.state is RunState.PREEMPTED else "run",
            "run_id": run.name,
            "program": caller.rules.program,
            "args": {name: {"value": value} for name, value in chosen.items()},
        }
    ]
