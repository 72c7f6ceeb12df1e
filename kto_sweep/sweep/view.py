"""A sweep and its trials as plain data, from W&B, the embedded server, or a test."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kto_sweep.fingerprints import TrainedRun
from kto_sweep.metrics import finite_number, summary_value
from kto_sweep.search.objectives import Objective
from kto_sweep.search.space import Space
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep_file.command import SweepCommand, read_command

OWNER, DEVICE = "_home", "_device"
"""Hidden keys of a run's config: the id of the home that last opened the run, and its device."""

UNSTABLE = "unstable"
"""The `trial/health` of a finished trial whose training broke."""

UNFINISHED = frozenset({"running", "pending", "preempting", "preempted"})
"""Run states of a trial that has not ended; the server hands out preempted ones again."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a sweep, read from its run."""

    run_id: str
    name: str
    state: str
    """W&B's run state: pending, running, finished, failed, crashed, killed, preempting, preempted."""
    config: Mapping[str, Any]
    """Its parameters, in the sweep file's groups; with all defaults once its run was started."""
    summary: Mapping[str, Any]
    seconds: float | None
    """From the run's start to its last heartbeat."""
    created: float | None = None
    """Unix seconds."""
    device: str = ""
    """The home's id and the device, `<home id> gpu 0`; empty for runs of other programs."""
    is_prior_run: bool = False
    """True for a run of another sweep that this one reuses."""
    paused: bool = False
    """True while successive halving pauses it, until it ranks among the best."""
    heartbeat: float | None = None
    """Unix seconds of the run's last sign of life; None if unknown."""

    @property
    def failure(self) -> str:
        """The `failure/cause` of a failed trial, or its state if it has no cause; empty for other trials.

        `unstable` for a finished trial whose training broke. A trial retried after a failure may still have
        the cause in its summary.
        """
        if self.state == "finished" and self.summary.get("trial/health") == UNSTABLE:
            return UNSTABLE
        if self.state not in {"failed", "crashed", "killed"}:
            return ""
        return str(self.summary.get("failure/cause") or self.state)

    def value(self, metric: str, *, maximize: bool = False) -> float | None:
        """The metric's value in the summary; None if missing or not finite."""
        return summary_value(self.summary, metric, maximize=maximize)

    @property
    def step(self) -> int | None:
        """The last optimizer step that it logged."""
        step = finite_number(self.summary, "_step")
        return None if step is None else int(step)

    @property
    def planned_steps(self) -> int | None:
        """Its optimizer steps in all."""
        steps = finite_number(self.summary, "trial/steps")
        return None if steps is None else int(steps)


@dataclass(frozen=True)
class SweepView:
    """A sweep and all its trials."""

    ref: SweepRef
    url: str
    name: str
    state: str
    """PENDING, RUNNING, PAUSED, FINISHED or CANCELED."""
    method: str
    metric: str
    goal: str
    """minimize or maximize"""
    space: Space
    expected: int | None
    """Trials in total; None for an unlimited sweep."""
    trials: tuple[TrialRecord, ...]
    objectives: tuple[Objective, ...] = ()
    """Two or three with the metric first, or empty for a single objective."""
    pauses_trials: bool = False
    """True for successive halving, which may resume stopped trials."""
    command: SweepCommand = field(default_factory=lambda: read_command({}))
    """The command of its configuration, which may fix parameters."""

    def count(self, *states: str) -> int:
        """The number of the sweep's trials in one of these states."""
        return sum(trial.state in states for trial in self.trials if self.is_counted(trial))

    def trained(self) -> list[TrainedRun]:
        """The trials with what they were trained on."""
        return [TrainedRun.of(trial.run_id, trial.config, trial.summary) for trial in self.trials]

    def is_counted(self, trial: TrialRecord) -> bool:
        """Whether the trial counts towards `expected`; a prior run counts only in a grid, as a cell."""
        return not trial.is_prior_run or self.method == "grid"
