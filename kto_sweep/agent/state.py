"""The state of an agent as plain data; only the scheduler changes it.

AgentState --- devices: DeviceState      one worker process each
          |--- slots: Slot ------------- at most one Assignment (a trial and its TrialStatus)
          |--- requeued: Assignment ...  trials without a slot
           `-- stats, settings, phase

The executor holds processes, W&B runs and heartbeats, keyed by device name, run id and slot number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from kto_sweep.agent.devices import Device
from kto_sweep.agent.lease import OrphanedTrial
from kto_sweep.agent.retry_policy import WorkerExit
from kto_sweep.agent.time_budget import Forecast
from kto_sweep.errors import FailureCause, UsageError
from kto_sweep.trial import Trial

MAX_CONSECUTIVE_FAILURES = 5
"""After this many failed trials and no successful one, the next would probably fail as well."""
MAX_OPENINGS = 8
"""Attempts to open a trial's run before the trial is dropped."""


class TrialStatus(StrEnum):
    """The status of a trial in a slot."""

    QUEUED = "queued"
    """Its W&B run is not open yet, or must be reopened."""
    OPENING = "opening"
    """Its W&B run is being opened."""
    READY = "ready"
    """Its run is open; it is waiting for its worker."""
    RUNNING = "running"
    """Its worker is training it."""
    CLOSING = "closing"
    """It ended; its run is being closed."""


class TrialEndKind(StrEnum):
    """How a trial's run is closed; users see the value."""

    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    """On request of the server."""
    PAUSED = "paused"
    """On request of the server, which may hand the trial out again (successive halving)."""
    PREEMPTED = "requeued"
    """The server hands it out again."""


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended."""

    kind: TrialEndKind
    summary: Mapping[str, float | int | str] = field(default_factory=dict)
    cause: str = ""
    """A value of `FailureCause` if the trial failed."""
    text: str = ""
    """The error message if the trial failed."""


@dataclass(frozen=True)
class Assignment:
    """A trial that this agent has accepted."""

    run_id: str
    config: Mapping[str, Any]
    """As the server sent it."""
    trial: Trial | None = None
    """None: the configuration cannot be trained."""
    problem: str = ""
    """Why it cannot be trained."""
    done_steps: int = 0
    """Optimizer steps in the checkpoint on this box when the trial was accepted."""
    orphan: OrphanedTrial | None = None
    """The files that a dead agent left of it; None for a trial that the server sent."""
    status: TrialStatus = TrialStatus.QUEUED
    logged_step: int = 0
    """The last step whose metrics its run has."""
    failures: int = 0
    """Failures at the same step that the trial did not cause."""
    failed_at: int = -1
    """The last step logged before these failures."""
    isolated: bool = False
    """It may be what kills workers: it runs alone until it gets past `failed_at` (retry_policy.py)."""
    not_before: float = 0.0
    """Time of the next attempt."""
    close_by: float = float("inf")
    """Time at which closing is abandoned: wandb's own timeout does not work for several runs at once."""
    ending: TrialEnd | None = None
    """How it ended; set while it is closing."""

    @classmethod
    def from_config(
        cls,
        run_id: str,
        config: Mapping[str, Any],
        *,
        done_steps: int = 0,
        orphan: OrphanedTrial | None = None,
    ) -> "Assignment":
        """A new assignment; this is the only place that parses a trial's configuration."""
        try:
            trial, problem = Trial.from_config(config), ""
        except UsageError as error:
            trial, problem = None, f"{error.message}\n  Hint: {error.hint}" if error.hint else error.message
        return cls(run_id, config, trial, problem, done_steps, orphan)

    @property
    def is_open(self) -> bool:
        """Whether its run is open and not being closed."""
        return self.status in (TrialStatus.READY, TrialStatus.RUNNING)

    def record_failure(self) -> "Assignment":
        """The assignment with one more failure at this step, taken from its worker."""
        again = self.logged_step <= self.failed_at
        return replace(
            self,
            status=TrialStatus.READY,
            failures=self.failures + 1 if again else 1,
            failed_at=max(self.logged_step, self.failed_at),
        )

    def record_progress(self, step: int) -> "Assignment":
        """The assignment after a logged step: failures at earlier steps no longer count."""
        logged = replace(self, logged_step=max(step, self.logged_step))
        return replace(logged, failures=0, isolated=False) if step > self.failed_at else logged


@dataclass(frozen=True)
class Slot:
    """Capacity for one trial on a device; the server sees each slot as a separate agent."""

    number: int
    device: str
    trial: Assignment | None = None
    closed: bool = False
    """It takes no trials."""
    failed_openings: int = 0
    """Consecutive runs that could not be opened."""
    ask_after: float = 0.0
    """It does not ask the server for a trial before this time."""

    def has(self, *statuses: TrialStatus) -> bool:
        """Whether its trial is in one of these statuses."""
        return self.trial is not None and self.trial.status in statuses


@dataclass(frozen=True)
class DeviceState:
    """One device and its worker process."""

    device: Device
    log: str = ""
    """Path of the log of its workers."""
    worker: int = 0
    """Number of the current worker process; 0: none."""
    ready: bool = False
    """The worker accepts orders."""
    was_ready: bool = False
    """Some worker was ready before, so a failed start may be temporary."""
    restart_at: float | None = None
    """Time at which the next worker starts; None: not scheduled."""
    idle_exits: int = 0
    """Consecutive worker exits without a trial."""
    exit_message: str = ""
    """The reason that the current worker gave for its exit."""
    exit_cause: FailureCause | None = None
    """Its cause, if the worker gave one."""
    quarantined: bool = False
    """No longer used: it is broken, or workers do not start on it."""
    no_trials_left: bool = False
    """The server had no trial for one of its slots."""
    target_slots: int | None = None
    """Slots that the worker can use; None: not measured yet, keep the current number."""
    silence: float = 0.0
    """Seconds since the last message of a worker that has work to do."""
    longest_silence: float = 0.0
    """The longest earlier silence between steps, in seconds."""
    stepping: bool = False
    """The worker is taking steps; earlier work, such as loading a model, may take any time."""
    warned: bool = False
    """The current silence was reported."""
    killed: bool = False
    """The watchdog killed the worker."""


@dataclass(frozen=True)
class AgentStats:
    """Counts of one agent's trials, and why it is draining."""

    started: int = 0
    finished: int = 0
    stopped: int = 0
    failed: int = 0
    consecutive_failures: int = 0
    """Failed trials while none has finished."""
    interrupted: int = 0
    """The signal that ended the agent, or 0."""
    out_of_time: bool = False
    """The next trial cannot finish in the time left."""
    time_is_up: bool = False
    """The agent's time is up: running trials are requeued."""
    server_lost: bool = False
    """The server did not answer for longer than --patience."""
    unsent: tuple[str, ...] = ()
    """Runs whose end the server has not received."""
    sent: tuple[tuple[float, str], ...] = ()
    """All other ended runs with their end times; runs sent shortly before an outage are checked later."""

    @property
    def too_many_failures(self) -> bool:
        """Whether trials keep failing and none succeeds."""
        return self.consecutive_failures >= MAX_CONSECUTIVE_FAILURES


@dataclass(frozen=True)
class Settings:
    """The settings that the agent was started with."""

    count: int | None = None
    """Maximum number of trials to start."""
    grace: float = 60.0
    """Seconds that trials have to save their work after the first signal."""
    patience: float = 900.0
    """Seconds for which the server may be silent."""
    adjusts_slots: bool = False
    """Workers choose the number of their slots."""
    pauses: bool = False
    """The server may send stopped trials again (asha)."""
    max_openings: int = MAX_OPENINGS


class Phase(StrEnum):
    """What the agent is doing."""

    WORKING = "working"
    SHUTTING_DOWN = "shutting down"
    """A signal arrived or time is up: running trials save their work and are requeued."""
    SERVICE_LOST = "service lost"
    """wandb's service process exited: nothing can be sent, but workers can still save their work."""
    ABORTING = "aborting"
    """An error ends the agent: runs are requeued within seconds."""
    ENDED = "ended"


class AgentOutcome(StrEnum):
    """How the agent ended."""

    DONE = "done"
    KILLED = "killed"
    """A second signal arrived or the grace time ran out: trials that were still running were not requeued."""
    RESTART = "restart"
    """Another process must continue, because this one lost wandb's service."""
    ERROR = "error"


@dataclass(frozen=True)
class AgentState:
    """Everything that the scheduler bases its decisions on."""

    devices: Mapping[str, DeviceState]
    slots: Mapping[int, Slot]
    settings: Settings
    requeued: tuple[Assignment, ...] = ()
    """Trials that run before new ones: open trials of quarantined devices, and trials of dead agents."""
    stats: AgentStats = AgentStats()
    phase: Phase = Phase.WORKING
    deadline: float = float("inf")
    """Time at which the current phase ends, even if work is left."""
    outcome: AgentOutcome | None = None
    """None until the agent has ended."""
    error: Exception | None = None
    """Why it aborts or must restart."""
    forecast: Forecast | None = None
    """Estimated trial times; None: the agent has no time limit."""
    time_left: float = float("inf")
    """Seconds in which trials may run."""
    worker_exits: tuple[WorkerExit, ...] = ()
    """Since the last trial that ended normally on the device."""
    culprits: frozenset[str] = frozenset()
    """Trials that are known to kill workers."""
    said_once: frozenset[str] = frozenset()
    """Messages that are not repeated while their cause persists."""
    ticked_at: float | None = None
    """Time of the last tick."""
    server_silence: float = 0.0
    """Seconds."""
    server_warned: bool = False
    """The current silence was reported."""
    workers_started: int = 0

    @classmethod
    def of(
        cls, devices: Mapping[Device, str], slots_per_device: int, settings: Settings, **more: Any
    ) -> "AgentState":
        """The initial state of an agent; `devices`: each with the path of its log; `more`: other fields."""
        names = [device.name for device in devices for _ in range(slots_per_device)]
        return cls(
            {device.name: DeviceState(device, log) for device, log in devices.items()},
            {number: Slot(number, name) for number, name in enumerate(names)},
            settings,
            **more,
        )

    @property
    def is_draining(self) -> bool:
        """Whether it starts no new trials; running ones may finish."""
        stats, count = self.stats, self.settings.count
        return (
            self.phase is not Phase.WORKING
            or stats.out_of_time
            or stats.server_lost
            or stats.too_many_failures
            or (count is not None and stats.started >= count)
        )

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        pending = any(trial.is_open for trial in self.requeued)
        return not pending and all(slot.closed and slot.trial is None for slot in self.slots.values())

    @property
    def trials_left(self) -> int | None:
        """The number of trials for the agent that replaces this one, including open ones; None: no limit."""
        count = self.settings.count
        held = sum(slot.trial is not None for slot in self.slots.values())
        held += sum(trial.is_open for trial in self.requeued)
        return None if count is None else count - self.stats.started + held
