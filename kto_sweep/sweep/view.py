"""A sweep and its trials as plain data, whoever holds them: W&B, the embedded server, or a test."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kto_sweep.fingerprints import TrainedRun
from kto_sweep.search.objectives import Objective
from kto_sweep.search.space import Space
from kto_sweep.sweep.ref import SweepRef

OWNER, DEVICE = "_home", "_device"
"""In a run's config, out of sight: the home (agent/lease.py) that has opened it last, and on what device."""

RUNNING = frozenset({"running", "pending", "preempting", "preempted"})
"""Run states of a trial that is not over; a preempted one is handed out again."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a sweep, as its run tells it."""

    run_id: str
    name: str
    state: str
    """W&B's run state: pending, running, finished, failed, crashed, killed, preempting, preempted."""
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    seconds: float | None
    """Time from start to the last sign of life."""
    created: float | None = None
    """Unix seconds."""
    place: str = ""
    """The device that an agent of ours trained it on, and of which box: `<home> gpu 0`; else empty."""
    borrowed: bool = False
    """It is of another sweep, and this one counts it as its own."""
    paused: bool = False
    """By successive halving: it waits until it is among the best."""

    @property
    def failure(self) -> str:
        """`failure/cause` of a trial that has failed, or its state when there is no cause; else empty.

        A trial that was run again after a failure may still have the cause in its summary.
        """
        if self.state not in {"failed", "crashed", "killed"}:
            return ""
        return str(self.summary.get("failure/cause") or self.state)

    def value(self, metric: str) -> float | None:
        """The metric's last value; None when there is none or it is not finite."""
        value = self.summary.get(metric)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value)


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
    """How many trials it takes in all; None when it has no end of its own."""
    trials: tuple[TrialRecord, ...]
    objectives: tuple[Objective, ...] = ()
    """Two or three, the metric first; empty: it has that alone."""
    pauses: bool = False
    """Trials that are stopped may go on, by successive halving."""

    def count(self, *states: str) -> int:
        """How many runs are in one of these states; those of other sweeps fill the cells of a grid alone."""
        return sum(trial.state in states for trial in self.trials if self.is_own(trial))

    def trained(self) -> list[TrainedRun]:
        """What each trial was trained on."""
        return [TrainedRun(trial.run_id, trial.config, trial.summary) for trial in self.trials]

    def is_own(self, trial: TrialRecord) -> bool:
        """Whether the trial is one that this sweep has, or would have had, to train."""
        return not trial.borrowed or self.method == "grid"
