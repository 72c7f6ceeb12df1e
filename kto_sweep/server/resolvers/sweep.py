"""Fields of sweeps and agents."""

from typing import Any

from kto_sweep.server.resolvers.registry import Fields, Request, connection, window
from kto_sweep.server.store import projects, runs, sweeps
from kto_sweep.server.store.filters import Where, compile_order
from kto_sweep.server.store.ids import from_global, to_global
from kto_sweep.server.store.projects import Project
from kto_sweep.server.store.sweeps import Agent, Sweep
from kto_sweep.server.sweep_rules import read_rules
from kto_sweep.server.wire import timestamp

fields = Fields()

AGENT_IS_GONE = 90.0
"""Seconds without a heartbeat after which an agent is shown as gone."""


@fields.of("Sweep", "id")
def _id(sweep: Sweep, request: Request) -> str:
    return to_global("Sweep", sweep.id)


@fields.of("Sweep", "displayName")
def _display_name(sweep: Sweep, request: Request) -> str | None:
    return sweep.display_name or read_rules(sweep.config).name


@fields.of("Sweep", "method")
def _method(sweep: Sweep, request: Request) -> str:
    return read_rules(sweep.config).method


@fields.of("Sweep", "project")
def _project(sweep: Sweep, request: Request) -> Project:
    return projects.get(request.reader, sweep.project_id)


@fields.of("Sweep", "createdAt")
def _created_at(sweep: Sweep, request: Request) -> str | None:
    return timestamp(sweep.created_at)


@fields.of("Sweep", "updatedAt")
def _updated_at(sweep: Sweep, request: Request) -> str | None:
    return timestamp(sweep.updated_at)


@fields.of("Sweep", "heartbeatAt")
def _heartbeat_at(sweep: Sweep, request: Request) -> str | None:
    return timestamp(sweep.heartbeat_at)


@fields.of("Sweep", "bestLoss")
def _best_loss(sweep: Sweep, request: Request) -> float | None:
    metric = read_rules(sweep.config).metric
    return sweeps.best_metric(request.reader, sweep.id, maximize=metric.maximize) if metric else None


@fields.of("Sweep", "runCount")
def _run_count(sweep: Sweep, request: Request) -> int:
    return runs.count(request.reader, runs.in_sweep(sweep.id))


@fields.of("Sweep", "runCountExpected")
def _run_count_expected(sweep: Sweep, request: Request) -> int | None:
    expected = read_rules(sweep.config).expected_trials()
    # GraphQL's Int has 32 bits; a grid beyond that has no end that anybody would see.
    return expected if expected is not None and expected < 2**31 else None


@fields.of("Sweep", "earlyStopJobRunning")
def _early_stop_job_running(sweep: Sweep, request: Request) -> bool:
    return False


@fields.of("Sweep", "runs")
def _runs(
    sweep: Sweep,
    request: Request,
    first: int | None = None,
    after: str | None = None,
    order: str | None = None,
) -> dict[str, Any]:
    part = window(first, after, usual=200)
    found = runs.page(
        request.reader, runs.in_sweep(sweep.id), compile_order(order), part.first + 1, part.offset
    )
    return connection(found, part)


@fields.of("Sweep", "agents")
def _agents(sweep: Sweep, request: Request) -> dict[str, Any]:
    return {"edges": [{"node": agent} for agent in sweeps.agents(request.reader, sweep.id)]}


@fields.of("Sweep", "agent")
def _agent(sweep: Sweep, request: Request, agent_name: str) -> Agent | None:
    found = sweeps.find_agent(request.reader, sweep.id, agent_name)
    if found is None and (row := from_global("Agent", agent_name)) is not None:
        found = sweeps.get_agent(request.reader, row)
    return found if found is not None and found.sweep_id == sweep.id else None


@fields.of("Agent", "id")
def _agent_id(agent: Agent, request: Request) -> str:
    return to_global("Agent", agent.id)


@fields.of("Agent", "state")
def _agent_state(agent: Agent, request: Request) -> str:
    silence = request.backend.uptime.silence(agent.heartbeat_at)
    return "running" if silence < AGENT_IS_GONE else "gone"


@fields.of("Agent", "totalRuns")
def _total_runs(agent: Agent, request: Request) -> int:
    return runs.count(request.reader, Where("run.agent_id = ?", (agent.id,)))


@fields.of("Agent", "createdAt")
def _agent_created_at(agent: Agent, request: Request) -> str | None:
    return timestamp(agent.created_at)


@fields.of("Agent", "heartbeatAt")
def _agent_heartbeat_at(agent: Agent, request: Request) -> str | None:
    return timestamp(agent.heartbeat_at)


@fields.of("Agent", "runs")
def _agent_runs(
    agent: Agent,
    request: Request,
    after: str | None = None,
    before: str | None = None,
    first: int | None = None,
    last: int | None = None,
    order: str | None = None,
) -> dict[str, Any]:
    part = window(first, after)
    where = Where("run.agent_id = ?", (agent.id,))
    return connection(
        runs.page(request.reader, where, compile_order(order), part.first + 1, part.offset), part
    )
