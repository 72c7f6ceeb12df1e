"""The state of a trial as people see it, on every face: `status`, the page, comparisons and reports.

W&B's run states do not say whether an agent still trains a run: a run whose agent was killed stays `running`
for minutes, and one that its agent requeued is `preempted` whether or not another agent will take it. A pure
function of the sweep and its runs, so it is the same for W&B and the embedded server.
"""

from collections.abc import Mapping
from enum import StrEnum

from kto_sweep.errors import FailureCause
from kto_sweep.sweep.view import ASSIGNED_SECONDS, HEARTBEAT_SECONDS, OVER, UNFINISHED, SweepView, TrialRecord


class TrialState(StrEnum):
    """The state of a trial; users see the value."""

    QUEUED = "queued"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    PAUSED = "paused"
    FINISHED = "finished"
    STOPPED = "stopped early"
    FAILED = "failed"
    CANCELED = "canceled"
    NOT_STARTED = "not started"

    @property
    def meaning(self) -> str:
        """What it means, in one sentence."""
        return _MEANINGS[self]

    @property
    def is_done(self) -> bool:
        """Whether the trial ended as the sweep intends."""
        return self in (TrialState.FINISHED, TrialState.STOPPED)

    @property
    def has_ended(self) -> bool:
        """Whether no agent continues the trial unless `resume` retries it."""
        return self.is_done or self in (TrialState.FAILED, TrialState.CANCELED)


_MEANINGS: Mapping[TrialState, str] = {
    TrialState.QUEUED: "an agent is starting it, or takes it when a slot is free",
    TrialState.RUNNING: f"an agent trains it: its last heartbeat is at most {HEARTBEAT_SECONDS:.0f} s old",
    TrialState.INTERRUPTED: "no agent trains it: the next agent continues it from its checkpoint, else from "
    "the start",
    TrialState.PAUSED: "successive halving paused it; it resumes if it ranks among the best",
    TrialState.FINISHED: "it took its last step",
    TrialState.STOPPED: "early termination, successive halving or a person stopped it; it counts as done",
    TrialState.FAILED: "an error ended it; `failure/cause` says which",
    TrialState.CANCELED: "the sweep was canceled before it ended, or it was stopped before its first step",
    TrialState.NOT_STARTED: "no run yet",
}


def state_of(view: SweepView, trial: TrialRecord) -> TrialState:
    """The state of a trial of this sweep."""
    if trial.state == "finished":
        return TrialState.FINISHED
    if trial.state == "killed":
        return TrialState.CANCELED if _is_canceled(view, trial) else TrialState.STOPPED
    if trial.state in UNFINISHED:
        return _unfinished_state(view, trial)
    # The agent that started it, or after `resume` any agent, continues a run that only went silent.
    if trial.state == "crashed" and trial.device and "failure/cause" not in trial.summary:
        return TrialState.CANCELED if view.state == "CANCELED" else TrialState.INTERRUPTED
    return TrialState.FAILED


def _unfinished_state(view: SweepView, trial: TrialRecord) -> TrialState:
    if trial.paused:
        return TrialState.STOPPED if view.state in OVER else TrialState.PAUSED
    if trial.state in {"running", "preempting"} and trial.sent_heartbeat(HEARTBEAT_SECONDS, view.now):
        return TrialState.RUNNING
    if view.state == "CANCELED":
        return TrialState.CANCELED  # no agent will take it
    starting = trial.state == "pending" and trial.sent_heartbeat(ASSIGNED_SECONDS, view.now)
    waiting = trial.state in {"pending", "preempted"} and view.has_agent and view.state not in OVER
    return TrialState.QUEUED if starting or waiting else TrialState.INTERRUPTED


def _is_canceled(view: SweepView, trial: TrialRecord) -> bool:
    """Whether a killed run was stopped because its sweep was canceled, or before it trained.

    W&B does not say why a run was killed. Runs that early termination stopped have sent no heartbeat since
    the cancel; runs that the cancel stopped have, unless no agent had them.
    """
    if trial.step is None:
        return True
    if view.state != "CANCELED" or not view.stops_trials:
        return view.state == "CANCELED"
    if trial.summary.get("failure/cause") == FailureCause.PREEMPTED:
        return True
    return trial.heartbeat is None or view.updated is None or trial.heartbeat >= view.updated
