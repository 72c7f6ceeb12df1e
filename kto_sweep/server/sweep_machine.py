"""What an agent is told at a heartbeat: a pure function of what the server knows.

The order of the rules matters: stops first, then the end, then waiting, then old runs, then a new one. A
client acts on one command at a time, starts a run whatever it is doing, and kills its children at `exit`;
hence `run` and `exit` go only to an agent that reports no run of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kto_sweep.server import successive_halving
from kto_sweep.server.states import OVER, RunState, SweepState
from kto_sweep.server.store.runs import Run

MAX_ASSIGNMENTS = 3
"""A run whose process dies this often before it calls in is given up."""


@dataclass(frozen=True)
class AgentContext:
    """What the server knows when an agent calls in."""

    sweep: SweepState
    exhausted: bool
    """The search has no further trial."""
    reported: Sequence[Run]
    """The runs that the agent says it has."""
    gone: Sequence[str]
    """Names of runs that it says it has as well, and that were deleted."""
    lost: Sequence[Run]
    """Runs that were handed to this agent, wait for their process, and are not reported by it."""
    free: Sequence[Run]
    """Runs that this agent may take: preempted ones first, then those of vanished agents, then the queue,
    then paused ones that may go on."""
    others_may_return_runs: bool
    """Another agent holds a run that may yet have to be handed out again."""
    elsewhere: Sequence[Run]
    """Paused runs that may go on, whose checkpoints lie on the host of another agent: better left to that."""
    queue_only: bool
    """A client-side scheduler chooses the trials."""


@dataclass(frozen=True)
class StopRuns:
    """End these runs."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class AssignRun:
    """Work on this run."""

    run: Run


@dataclass(frozen=True)
class SuggestTrial:
    """Work on the next trial of the search, if there is one."""


@dataclass(frozen=True)
class Wait:
    """Call again later."""


@dataclass(frozen=True)
class Exit:
    """The sweep needs this agent no more."""


Decision = StopRuns | AssignRun | SuggestTrial | Wait | Exit


def decide(context: AgentContext) -> Decision:
    """What to tell the agent."""
    canceled = context.sweep is SweepState.CANCELED
    stops = [run.name for run in context.reported if canceled or run.stop_requested]
    if stops or context.gone:
        return StopRuns((*stops, *context.gone))
    if context.sweep in OVER and not context.reported:
        return Exit()
    if context.sweep is SweepState.PAUSED or context.reported:
        return Wait()
    return _next_run(context)


def _next_run(context: AgentContext) -> Decision:
    """Work for an agent that is free, in a sweep that goes on."""
    waiting = (*context.lost, *context.free)
    if waiting:
        return AssignRun(waiting[0])
    if context.queue_only:
        return Wait()
    if not context.exhausted:
        return SuggestTrial()
    if context.elsewhere:
        return AssignRun(context.elsewhere[0])
    return Wait() if context.others_may_return_runs else Exit()


def state_when_unreported(run: Run) -> RunState:
    """The state of a run that its agent reports no more, while nothing has said how it ended."""
    if run.stop_requested and run.picked_up:
        return successive_halving.state_when_stopped(run)
    if run.state is RunState.PENDING and (run.picked_up or run.handed_out >= MAX_ASSIGNMENTS):
        # Its process came and went without wandb.init.
        return RunState.FAILED
    return run.state
