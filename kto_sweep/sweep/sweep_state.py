"""The state of a sweep as people see it, what ended it, and what can be done with it.

PENDING --agent--> RUNNING <--agent-- INTERRUPTED      on W&B:  RUNNING
                      |--pause--> PAUSED                        PAUSED
                      |--stop--> STOPPING --> STOPPED           FINISHED
                      |--target, all trials--> FINISHED         FINISHED
                      '--cancel--> CANCELING --> CANCELED       CANCELED

Pure functions of a sweep and its runs: W&B stores five states, and not why a sweep ended.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from kto_sweep.metrics import finite_number
from kto_sweep.sweep.grid_status import GridCell, GridStatus, count_missing, read_grid_status
from kto_sweep.sweep.trial_state import TrialState, state_of
from kto_sweep.sweep.view import OVER, SweepView, TrialRecord
from kto_sweep.text import counted


class ShownState(StrEnum):
    """The state of a sweep; users see the value."""

    PENDING = "pending"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FINISHED = "finished"
    CANCELING = "canceling"
    CANCELED = "canceled"

    @property
    def meaning(self) -> str:
        """What it means, in one sentence."""
        return _MEANINGS[self]


_MEANINGS: Mapping[ShownState, str] = {
    ShownState.PENDING: "registered; no agent has started it",
    ShownState.RUNNING: "an agent trains its trials",
    ShownState.INTERRUPTED: "trials are left, and no agent is alive",
    ShownState.PAUSED: "no new trials start until `kto-sweep resume`; running ones finish",
    ShownState.STOPPING: "no new trials start, and running ones finish; `kto-sweep cancel` stops them too",
    ShownState.STOPPED: "stopped with trials left; `kto-sweep resume` trains them",
    ShownState.FINISHED: "all its trials have ended, or one reached `metric.target`",
    ShownState.CANCELING: "canceled; its running trials are being stopped",
    ShownState.CANCELED: "canceled; no trial runs",
}


class EndKind(StrEnum):
    """What ended a sweep."""

    TARGET = "target"
    STOP = "stop"
    CANCEL = "cancel"
    ALL_TRIALS = "all trials"
    RUN_CAP = "run_cap"


@dataclass(frozen=True)
class SweepEnd:
    """What ended a sweep, with the trial that reached `metric.target`."""

    kind: EndKind
    text: str
    """For people: `run ab12cd34 reached the target: eval/common_loss 0.31 <= 0.35`."""
    run_id: str = ""
    value: float | None = None


class Action(StrEnum):
    """What a person can do with a sweep: the names of commands and buttons."""

    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    CANCEL = "cancel"


WIRE_STATES: Mapping[Action, str] = {
    Action.PAUSE: "PAUSED",
    Action.RESUME: "RUNNING",
    Action.STOP: "FINISHED",
    Action.CANCEL: "CANCELED",
}
"""W&B's state of a sweep after each action."""


@dataclass(frozen=True)
class Refusal:
    """Why an action would do nothing, and what to type instead."""

    reason: str
    hint: str


@dataclass(frozen=True)
class SweepStatus:
    """A sweep with the state of its trials, its own, and what can be done with it."""

    view: SweepView
    grid: GridStatus
    state: ShownState
    left: int | None
    """Trials that have not ended, including those without a run; None for an unlimited sweep."""
    end: SweepEnd | None
    """What ended it; None if it has not ended."""

    def refusal(self, action: Action) -> Refusal | None:
        """Why an action would change nothing; None if it may be taken."""
        view, state, compare = self.view, self.state, f"kto-sweep compare {self.view.ref.argument}"
        ended = view.state in OVER or state is ShownState.FINISHED
        instead = f"kto-sweep cancel {view.ref.argument}" if state is ShownState.STOPPING else compare
        refused = None
        match action:
            case Action.RESUME if self.grid.retryable:
                pass
            case Action.RESUME if state is ShownState.FINISHED and self.left == 0:
                refused = Refusal("no trial is left", compare)
            case Action.RESUME if not ended and view.state != "PAUSED":
                refused = Refusal("it is not paused", f"kto-sweep agent {view.ref.argument}")
            case Action.PAUSE | Action.STOP if ended:
                refused = Refusal("it starts no new trials", instead)
            case Action.PAUSE if view.state == "PENDING":
                refused = Refusal("no agent has started it", f"kto-sweep cancel {view.ref.argument}")
            case Action.CANCEL if ended and not self._waits:
                refused = Refusal("no trial of it runs or waits", compare)
        return refused

    @property
    def waits_for_agent(self) -> bool:
        """Whether a trial is left that an agent started now could train."""
        waiting = (TrialState.INTERRUPTED, TrialState.QUEUED, TrialState.PAUSED)
        missing = count_missing(self.view, self.grid)
        return self.view.state not in OVER and (missing != 0 or bool(self.grid.in_state(*waiting)))

    @property
    def _waits(self) -> bool:
        own = (trial for trial in self.view.trials if not trial.is_prior_run)
        return not all(state_of(self.view, trial).has_ended for trial in own)

    def next_command(self, home: str = "") -> str:
        """The command to type next, such as `kto-sweep agent ab12cd34`; `home`: the id of this box's home."""
        interrupted = self.grid.in_state(TrialState.INTERRUPTED)
        retried = any(not _continues_in(home, cell) for cell in self.grid.retryable)
        match self.state:
            case ShownState.CANCELED | ShownState.CANCELING | ShownState.STOPPING:
                command = "compare"
            case ShownState.PAUSED:
                command = "resume"
            case _ if retried:
                command = "resume"
            case ShownState.PENDING | ShownState.INTERRUPTED:
                command = "agent"
            case ShownState.RUNNING if not self.grid.in_state(TrialState.RUNNING, TrialState.QUEUED):
                command = "agent"  # perhaps one is between two trials; perhaps it has just ended
            case ShownState.STOPPED if interrupted:
                command = "agent" if all(_continues_in(home, cell) for cell in interrupted) else "resume"
            case _:
                command = "compare"
        return f"kto-sweep {command} {self.view.ref.argument}"

    def facts(self, home: str = "") -> dict[str, Any]:
        """Its state, its end, actions and next command as JSON, for scripts and the page."""
        end, refusals = self.end, {action.value: self.refusal(action) for action in Action}
        return {
            "shown_state": self.state.value,
            "ended_by": end and {**asdict(end), "kind": end.kind.value, "run_id": end.run_id or None},
            "actions": {name: refused and asdict(refused) for name, refused in refusals.items()},
            "next": self.next_command(home),
        }


def read_sweep_status(view: SweepView) -> SweepStatus:
    """The status of this sweep."""
    grid = read_grid_status(view)
    missing = count_missing(view, grid)
    unended = sum(not cell.state.has_ended for cell in grid.cells if cell.trial is not None)
    left = None if missing is None else missing + unended
    reached = _target_trial(view) if view.state == "FINISHED" else None
    return SweepStatus(
        view, grid, _state(view, left, reached=bool(reached)), left, _end(view, grid, left, reached)
    )


def _state(view: SweepView, left: int | None, *, reached: bool) -> ShownState:
    states = {state_of(view, trial) for trial in view.trials}
    state = ShownState.RUNNING if view.has_agent else ShownState.INTERRUPTED
    if view.state == "CANCELED":
        state = ShownState.CANCELING if TrialState.RUNNING in states else ShownState.CANCELED
    elif view.state == "FINISHED" and states & {TrialState.RUNNING, TrialState.QUEUED}:
        state = ShownState.STOPPING
    elif left == 0 or reached:
        # The server may not know it yet: an agent tells it that the search is exhausted.
        state = ShownState.FINISHED
    elif view.state == "FINISHED":
        state = ShownState.STOPPED
    elif view.state == "PAUSED":
        state = ShownState.PAUSED
    elif view.state == "PENDING":
        state = ShownState.PENDING
    return state


def _end(
    view: SweepView, grid: GridStatus, left: int | None, reached: tuple[TrialRecord, float] | None
) -> SweepEnd | None:
    """What ended the sweep, derived from its runs."""
    if view.state == "CANCELED":
        return SweepEnd(EndKind.CANCEL, "by kto-sweep cancel or its button")
    if reached is not None:
        trial, value = reached
        sign = ">=" if view.goal == "maximize" else "<="
        text = f"run {trial.run_id} reached the target: {view.metric} {value:.4g} {sign} {view.target:g}"
        return SweepEnd(EndKind.TARGET, text, trial.run_id, value)
    if left == 0 and grid.lists_every_cell and view.expected == view.space.grid_size():
        return SweepEnd(EndKind.ALL_TRIALS, "all trials of its grid have ended")
    if left == 0:
        return SweepEnd(EndKind.RUN_CAP, f"run_cap: {counted(view.expected or 0, 'trial')} have ended")
    return SweepEnd(EndKind.STOP, "by kto-sweep stop or its button") if view.state == "FINISHED" else None


def _target_trial(view: SweepView) -> tuple[TrialRecord, float] | None:
    """Of the trials that reached `metric.target` the one with the best value, and that value."""
    if view.target is None:
        return None
    maximize, best = view.goal == "maximize", None
    for trial in view.trials:
        # The last value may be worse than the one that ended the sweep.
        last = trial.value(view.metric, maximize=maximize)
        for value in (last, finite_number(trial.summary, "objective/best")):
            if value is not None and not _is_better(view.target, value, maximize=maximize):
                best = (
                    (trial, value) if best is None or _is_better(value, best[1], maximize=maximize) else best
                )
    return best


def _is_better(value: float, than: float, *, maximize: bool) -> bool:
    return value > than if maximize else value < than


def _continues_in(home: str, cell: GridCell) -> bool:
    """Whether the next agent of this home continues the cell's trial, which went silent there."""
    return (
        cell.trial is not None
        and cell.state is TrialState.INTERRUPTED
        and cell.trial.state in {"running", "crashed", "preempting"}
        and cell.trial.device.split()[:1] == [home]
    )
