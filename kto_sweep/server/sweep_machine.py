"""Decides an agent's next command at a heartbeat: a pure function of the server's state.

The order of the rules matters: stop, exit, wait, existing runs, new trial. A client acts on one command at a
time, starts a run even while another is running, and kills its children on `exit`; so only an agent that
reports no run gets `run` or `exit`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kto_sweep.server import successive_halving
from kto_sweep.server.states import OVER, RunState, SweepState
from kto_sweep.server.store.runs import Run

MAX_ASSIGNMENTS = 3
"""A run whose process dies this often before `wandb.init` fails."""


@dataclass(frozen=True)
class HeartbeatContext:
    """The server's state at an agent's heartbeat."""

    sweep_state: SweepState
    exhausted: bool
    """The search has no more trials."""
    reported: Sequence[Run]
    """Runs that the agent reports."""
    deleted: Sequence[str]
    """Names of reported runs that were deleted."""
    lost: Sequence[Run]
    """Pending runs that were assigned to this agent and that it does not report."""
    available: Sequence[Run]
    """Runs that this agent may take: preempted ones first, then those of timed-out agents, then the queue,
    then promotable paused ones."""
    others_may_return_runs: bool
    """Another agent holds a run that may have to be reassigned."""
    elsewhere: Sequence[Run]
    """Promotable paused runs whose checkpoints are on another online agent's host."""
    queue_only: bool
    """A client-side scheduler chooses the trials; the server only assigns them."""


@dataclass(frozen=True)
class StopRuns:
    """Stop these runs."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class AssignRun:
    """Run this existing or new run."""

    run: Run


@dataclass(frozen=True)
class SuggestTrial:
    """Ask the search for the next trial and run it."""


@dataclass(frozen=True)
class Wait:
    """No command."""


@dataclass(frozen=True)
class Exit:
    """The sweep has no more work for this agent."""


Decision = StopRuns | AssignRun | SuggestTrial | Wait | Exit


def decide(context: HeartbeatContext) -> Decision:
    """The agent's next command."""
    canceled = context.sweep_state is SweepState.CANCELED
    stops = [run.name for run in context.reported if canceled or run.stop_requested]
    if stops or context.deleted:
        return StopRuns((*stops, *context.deleted))
    if context.sweep_state in OVER and not context.reported:
        return Exit()
    if context.sweep_state is SweepState.PAUSED or context.reported:
        return Wait()
    return _next_run(context)


def _next_run(context: HeartbeatContext) -> Decision:
    """The next run for an idle agent of an active sweep."""
    waiting = (*context.lost, *context.available)
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
    """State of a run that its agent stopped reporting and whose exit code is unknown."""
    if run.stop_requested and run.picked_up:
        return successive_halving.state_when_stopped(run)
    if run.state is RunState.PENDING and (run.picked_up or run.handed_out >= MAX_ASSIGNMENTS):
        # Its process exited before wandb.init.
        return RunState.FAILED
    return run.state
