"""A sweep and its trials as plain data, from W&B, the embedded server, or a test."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from kto_sweep.alerts import RunAlert, alerts_of
from kto_sweep.fingerprints import TrainedRun
from kto_sweep.metrics import finite_number, summary_value
from kto_sweep.search.objectives import Objective
from kto_sweep.search.space import Space
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep_file.command import SweepCommand, read_command
from kto_sweep.text import is_number

OWNER, DEVICE = "_home", "_device"
"""Hidden keys of a run's config: the id of the home that last opened the run, and its device."""

MAX_NAME = 60
"""Maximum characters of a run's name in a sentence."""
BUSY = "_busy"
"""Hidden key of a run's summary: `[device, start, end]` of each attempt; Unix seconds by its machine's clock.

The device is that of `TrialRecord.device`. The last end moves on with each step that is logged.
"""

HEALTH, UNSTABLE = "trial/health", "unstable"
"""Key in a run's summary, and its value for a finished trial whose training broke."""

UNFINISHED = frozenset({"running", "pending", "preempting", "preempted"})
"""Run states of a trial that has not ended; the server hands out preempted ones again."""

OVER = frozenset({"FINISHED", "CANCELED"})
"""States in which W&B and the embedded server hand out no trials of a sweep."""

HEARTBEAT_SECONDS = 90.0
"""A process that has sent no heartbeat for this long counts as dead; wandb sends one every 30 s."""
MAX_RUN_SECONDS = 1e9
"""Seconds (32 years); a larger time in a run's log or summary is wrong."""
ASSIGNED_SECONDS = 30.0
"""An agent starts a run within this time after the server has handed it out."""
BETWEEN_TRIALS_SECONDS = 10.0
"""An agent asks for its next trial within this time after one has ended."""


@dataclass(frozen=True, slots=True)
class BusySpan:
    """A time in which a trial held a device."""

    device: str
    """As `TrialRecord.device`."""
    start: float
    """Unix seconds, by the clock of its machine."""
    end: float


@dataclass(frozen=True, slots=True)  # a sweep may have tens of thousands
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
    """Unix seconds of the run's last sign of life, by the server's clock; None if unknown."""

    busy: tuple[BusySpan, ...] = ()
    """Its attempts; empty for runs of other programs."""

    def sent_heartbeat(self, within: float, now: float | None) -> bool:
        """Whether its last heartbeat is at most `within` seconds old; True if that is unknown.

        A heartbeat of the future dates from before the server's clock was set back: it says nothing.
        """
        return now is None or self.heartbeat is None or abs(now - self.heartbeat) <= within

    @property
    def failure(self) -> str:
        """The `failure/cause` of a failed trial, or its state if it has no cause; empty for other trials.

        `unstable` for a finished trial whose training broke. A trial retried after a failure may still have
        the cause in its summary.
        """
        if self.state == "finished" and self.summary.get(HEALTH) == UNSTABLE:
            return UNSTABLE
        if self.state not in {"failed", "crashed", "killed"}:
            return ""
        return str(self.summary.get("failure/cause") or self.state)

    @property
    def failure_message(self) -> str:
        """What went wrong, in a sentence; empty for other trials."""
        if not self.failure:
            return ""
        name = "trial/health_message" if self.failure == UNSTABLE else "failure/message"
        return str(self.summary.get(name) or "")

    def value(self, metric: str, *, maximize: bool = False) -> float | None:
        """The metric's value in the summary; None if missing or not finite."""
        return summary_value(self.summary, metric, maximize=maximize)

    @property
    def printable_name(self) -> str:
        """Its name for people; control characters are left out, because names are untrusted."""
        return "".join(char for char in self.name if char.isprintable())[:MAX_NAME] or self.run_id

    @property
    def label(self) -> str:
        """Its name and id for sentences."""
        name = self.printable_name
        return name if name == self.run_id else f"{name} ({self.run_id})"

    @property
    def trained(self) -> TrainedRun:
        """The trial with what it was trained on."""
        return TrainedRun.of(self.run_id, self.config, self.summary)

    @property
    def alerts(self) -> tuple[RunAlert, ...]:
        """Its last alerts, the oldest first: level, title, text and step of each."""
        return alerts_of(self.summary)

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
    config: Mapping[str, Any] = field(default_factory=dict)
    """The registered sweep configuration."""
    target: float | None = None
    """The value of the metric at which the server ends the sweep."""
    stops_trials: bool = False
    """True with early termination or successive halving: the server may stop a trial before its last step."""
    updated: float | None = None
    """Unix seconds of the sweep's last change (of a canceled one its cancel), by the server's clock."""
    now: float | None = None
    """Unix seconds at which it was read, by the server's clock; None: unknown, no heartbeat counts as old."""

    @cached_property
    def has_agent(self) -> bool:
        """Whether an agent is alive: it trains a trial, is starting one, or has just ended one."""
        alive = {"running": HEARTBEAT_SECONDS, "preempting": HEARTBEAT_SECONDS, "pending": ASSIGNED_SECONDS}
        if any(
            trial.state in alive and trial.sent_heartbeat(alive[trial.state], self.now)
            for trial in self.trials
        ):
            return True
        if self.now is None or any(trial.state == "preempted" and not trial.paused for trial in self.trials):
            return False  # an agent that ends requeues its trials; one that lives takes them at once
        signs = [trial.heartbeat for trial in self.trials if not trial.is_prior_run] or [self.updated]
        return any(sign is not None and abs(self.now - sign) <= BETWEEN_TRIALS_SECONDS for sign in signs)

    def count(self, *states: str) -> int:
        """The number of the sweep's trials in one of these states."""
        return sum(trial.state in states for trial in self.trials if self.is_counted(trial))

    def trained(self) -> list[TrainedRun]:
        """The trials with what they were trained on."""
        return [trial.trained for trial in self.trials]

    def is_counted(self, trial: TrialRecord) -> bool:
        """Whether the trial counts towards `expected`; a prior run counts only in a grid, as a cell."""
        return not trial.is_prior_run or self.method == "grid"


def seconds_of(summary: Mapping[str, Any], created: float | None, heartbeat: float | None) -> float | None:
    """Seconds that a run took: what it logged, else from its creation to its last heartbeat."""
    for name in ("trial/seconds", "_runtime"):
        seconds = finite_number(summary, name)
        if seconds is not None and 0 <= seconds <= MAX_RUN_SECONDS:
            return seconds
    if created is None or heartbeat is None:
        return None
    return max(0.0, heartbeat - created)  # negative if a clock was set back


def busy_spans(summary: Mapping[str, Any]) -> tuple[BusySpan, ...]:
    """The attempts in a run's summary; empty if it has none, or if it was edited."""
    spans = []
    for entry in summary.get(BUSY) or ():
        match entry:
            case [str(device), start, end] if is_number(start) and is_number(end) and start <= end:
                spans.append(BusySpan(sys.intern(device), float(start), float(end)))
    return tuple(spans)
