"""Fields of sweeps and agents."""

from typing import Any

from kto_sweep.server.resolvers.registry import Context, Fields, connection, page_args
from kto_sweep.server.store import projects, runs, sweeps
from kto_sweep.server.store.filters import NOTHING, Where, compile_filter, compile_order
from kto_sweep.server.store.ids import from_global, to_global
from kto_sweep.server.store.projects import Project
from kto_sweep.server.store.sweeps import Agent, Sweep
from kto_sweep.server.sweep_rules import read_rules
from kto_sweep.server.wire import timestamp
from kto_sweep.sweep.view import HEARTBEAT_SECONDS

fields = Fields()


@fields.of("Sweep", "id")
def _id(sweep: Sweep, context: Context) -> str:
    return to_global("Sweep", sweep.id)


@fields.of("Sweep", "displayName")
def _display_name(sweep: Sweep, context: Context) -> str | None:
    return sweep.display_name or read_rules(sweep.config).name


@fields.of("Sweep", "method")
def _method(sweep: Sweep, context: Context) -> str:
    return read_rules(sweep.config).method


@fields.of("Sweep", "project")
def _project(sweep: Sweep, context: Context) -> Project:
    return projects.get(context.reader, sweep.project_id)


@fields.of("Sweep", "createdAt")
def _created_at(sweep: Sweep, context: Context) -> str | None:
    return timestamp(sweep.created_at)


@fields.of("Sweep", "updatedAt")
def _updated_at(sweep: Sweep, context: Context) -> str | None:
    return timestamp(sweep.updated_at)


@fields.of("Sweep", "heartbeatAt")
def _heartbeat_at(sweep: Sweep, context: Context) -> str | None:
    return timestamp(sweep.heartbeat_at)


@fields.of("Sweep", "bestLoss")
def _best_loss(sweep: Sweep, context: Context) -> float | None:
    metric = read_rules(sweep.config).metric
    return sweeps.best_metric(context.reader, sweep.id, maximize=metric.maximize) if metric else None


@fields.of("Sweep", "runCount")
def _run_count(sweep: Sweep, context: Context) -> int:
    return runs.count(context.reader, runs.in_sweep(sweep.id))


@fields.of("Sweep", "runCountExpected")
def _run_count_expected(sweep: Sweep, context: Context) -> int | None:
    expected = read_rules(sweep.config).expected_trials()
    # GraphQL's Int has 32 bits; a larger grid is reported as having no expected count.
    return expected if expected is not None and expected < 2**31 else None


@fields.of("Sweep", "earlyStopJobRunning")
def _early_stop_job_running(sweep: Sweep, context: Context) -> bool:
    return False


@fields.of("Sweep", "runs")
def _runs(
    sweep: Sweep,
    context: Context,
    first: int | None = None,
    after: str | None = None,
    order: str | None = None,
) -> dict[str, Any]:
    return _run_page(context, runs.in_sweep(sweep.id), first, after, order)


@fields.of("Sweep", "priorRuns")
def _prior_runs(
    sweep: Sweep,
    context: Context,
    first: int | None = None,
    after: str | None = None,
    order: str | None = None,
) -> dict[str, Any]:
    # Prior runs of no other sweep became this sweep's own runs: the filter tells them from its trials.
    where = compile_filter(sweep.prior_runs) if sweep.prior_runs else NOTHING
    own = runs.in_sweep(sweep.id)
    return _run_page(context, where.and_also(own.sql, *own.parameters), first, after, order)


def _run_page(
    context: Context, where: Where, first: int | None, after: str | None, order: str | None
) -> dict[str, Any]:
    page = page_args(first, after, default=200)
    page_runs = runs.page(context.reader, where, compile_order(order), page.first + 1, page.offset)
    return connection(page_runs, page)


@fields.of("Sweep", "agents")
def _agents(sweep: Sweep, context: Context) -> dict[str, Any]:
    return {"edges": [{"node": agent} for agent in sweeps.agents(context.reader, sweep.id)]}


@fields.of("Sweep", "agent")
def _agent(sweep: Sweep, context: Context, agent_name: str) -> Agent | None:
    agent = sweeps.find_agent(context.reader, sweep.id, agent_name)
    if agent is None and (row := from_global("Agent", agent_name)) is not None:
        agent = sweeps.get_agent(context.reader, row)
    return agent if agent is not None and agent.sweep_id == sweep.id else None


@fields.of("Agent", "id")
def _agent_id(agent: Agent, context: Context) -> str:
    return to_global("Agent", agent.id)


@fields.of("Agent", "state")
def _agent_state(agent: Agent, context: Context) -> str:
    idle = context.server.clock.seconds_since(agent.heartbeat_at)
    return "running" if idle < HEARTBEAT_SECONDS else "gone"


@fields.of("Agent", "totalRuns")
def _total_runs(agent: Agent, context: Context) -> int:
    return runs.count(context.reader, Where("run.agent_id = ?", (agent.id,)))


@fields.of("Agent", "createdAt")
def _agent_created_at(agent: Agent, context: Context) -> str | None:
    return timestamp(agent.created_at)


@fields.of("Agent", "heartbeatAt")
def _agent_heartbeat_at(agent: Agent, context: Context) -> str | None:
    return timestamp(agent.heartbeat_at)


@fields.of("Agent", "runs")
def _agent_runs(
    agent: Agent,
    context: Context,
    after: str | None = None,
    before: str | None = None,
    first: int | None = None,
    last: int | None = None,
    order: str | None = None,
) -> dict[str, Any]:
    page = page_args(first, after)
    where = Where("run.agent_id = ?", (agent.id,))
    return connection(
        runs.page(context.reader, where, compile_order(order), page.first + 1, page.offset), page
    )
