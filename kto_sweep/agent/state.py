"""What an agent knows, as plain data; the scheduler alone decides how it changes.

AgentState --- devices: DeviceState      one worker process each
          |--- slots: Slot ------------- at most one Assignment (a trial and its TrialStatus)
          |--- requeued: Assignment ...  trials without a slot
           `-- stats, settings, phase

Processes, W&B runs and heartbeats are the executor's, by device name, run id and slot number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from kto_sweep.agent.devices import Device
from kto_sweep.agent.lease import OrphanedTrial
from kto_sweep.agent.retry_policy import WorkerExit
from kto_sweep.agent.time_budget import Forecast
from kto_sweep.errors import UsageError
from kto_sweep.trial import Trial

MAX_CONSECUTIVE_FAILURES = 5
"""After so many failed trials, with none that succeeded, the next would fail as well."""
MAX_OPENINGS = 8
"""Attempts to open a trial's run before the trial is dropped."""


class TrialStatus(StrEnum):
    """Where a trial is on its way through a slot."""

    QUEUED = "queued"
    """Its W&B run is to be opened, or opened again."""
    OPENING = "opening"
    """Its W&B run is being opened."""
    READY = "ready"
    """Its run is open; it waits for its worker."""
    RUNNING = "running"
    """Its worker has it."""
    CLOSING = "closing"
    """It has ended; its run is being closed."""


class TrialEndKind(StrEnum):
    """How a trial's run is closed; the value is what people read."""

    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    """The server asked for it."""
    PAUSED = "paused"
    """The server asked for it and may hand the trial out again: successive halving."""
    PREEMPTED = "put back"
    """The server is to hand it out again."""


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended."""

    kind: TrialEndKind
    summary: Mapping[str, float | int | str] = field(default_factory=dict)
    cause: str = ""
    """A value of `FailureCause`, of a failed trial."""
    text: str = ""
    """Of a failed trial, for people."""


@dataclass(frozen=True)
class Assignment:
    """A trial that this agent has taken."""

    run_id: str
    config: Mapping[str, Any]
    """As the server sent it."""
    trial: Trial | None = None
    """None: the configuration cannot be trained."""
    problem: str = ""
    """Why not."""
    done_steps: int = 0
    """Optimizer steps that a checkpoint on this box already has, when the trial was taken."""
    orphan: OrphanedTrial | None = None
    """What a dead agent has left of it; None for a trial that the server sent."""
    status: TrialStatus = TrialStatus.QUEUED
    logged_step: int = 0
    """The last step whose metrics its run has."""
    failures: int = 0
    """Failures at the same step that were not its own fault."""
    failed_at: int = -1
    """The last step logged before them."""
    isolated: bool = False
    """It may be what kills the workers: it runs alone until it gets past `failed_at` (retry_policy.py)."""
    not_before: float = 0.0
    """Time of the next attempt."""
    close_by: float = float("inf")
    """Time at which closing is abandoned: wandb's own limit does not hold for several runs at once."""
    ending: TrialEnd | None = None
    """While it is closing."""

    @classmethod
    def from_config(
        cls,
        run_id: str,
        config: Mapping[str, Any],
        *,
        done_steps: int = 0,
        orphan: OrphanedTrial | None = None,
    ) -> "Assignment":
        """A trial as it enters the agent: its configuration is parsed here and nowhere later."""
        try:
            trial, problem = Trial.from_config(config), ""
        except UsageError as error:
            trial, problem = None, f"{error.message}\n  Hint: {error.hint}" if error.hint else error.message
        return cls(run_id, config, trial, problem, done_steps, orphan)

    @property
    def is_open(self) -> bool:
        """Its run is open and not being closed."""
        return self.status in (TrialStatus.READY, TrialStatus.RUNNING)

    def record_failure(self) -> "Assignment":
        """One more failure at this step; its worker no longer has it."""
        again = self.logged_step <= self.failed_at
        return replace(
            self,
            status=TrialStatus.READY,
            failures=self.failures + 1 if again else 1,
            failed_at=max(self.logged_step, self.failed_at),
        )

    def record_progress(self, step: int) -> "Assignment":
        """A step was logged: failures at earlier steps no longer count."""
        logged = replace(self, logged_step=max(step, self.logged_step))
        return replace(logged, failures=0, isolated=False) if step > self.failed_at else logged


@dataclass(frozen=True)
class Slot:
    """Room for one trial on a device; an agent of its own on the server."""

    number: int
    device: str
    trial: Assignment | None = None
    closed: bool = False
    """It takes no trials."""
    failed_openings: int = 0
    """Runs in a row that could not be opened."""
    ask_after: float = 0.0
    """Time before which it asks the server for no trial."""

    def has(self, *statuses: TrialStatus) -> bool:
        """Whether its trial is in one of these statuses."""
        return self.trial is not None and self.trial.status in statuses


@dataclass(frozen=True)
class DeviceState:
    """One device and its worker process."""

    device: Device
    log: str = ""
    """Where its workers print."""
    worker: int = 0
    """The number of the present worker process; 0: there is none."""
    ready: bool = False
    """The worker takes orders."""
    was_ready: bool = False
    """Some worker was: if another does not start, that may pass."""
    restart_at: float | None = None
    """Time at which another worker is started; None: there is one, or there is to be none."""
    idle_exits: int = 0
    """Workers in a row that ended without a trial."""
    exit_message: str = ""
    """The reason that the present worker gave for its end."""
    quarantined: bool = False
    """No longer used: it is broken, or workers do not start on it."""
    no_trials_left: bool = False
    """The server had no trial for one of its slots."""
    target_slots: int | None = None
    """Slots that the worker can make use of; None: as many as there are, it has not measured yet."""
    silence: float = 0.0
    """Seconds for which a worker with something to do has sent nothing."""
    longest_silence: float = 0.0
    """Before the present one, between steps."""
    stepping: bool = False
    """The worker takes steps; what comes before, such as loading a model, may take any time."""
    warned: bool = False
    """The present silence was reported."""
    killed: bool = False
    """The watchdog has killed the worker."""


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
    """The next trial could not end within the agent's time."""
    time_is_up: bool = False
    """The agent's time is over: running trials are put back."""
    server_lost: bool = False
    """The server did not answer for longer than --patience."""
    unsent: tuple[str, ...] = ()
    """Runs whose end the server has not received."""
    sent: tuple[tuple[float, str], ...] = ()
    """Each other run and the time of its end: what was sent to a server in trouble is checked later."""

    @property
    def too_many_failures(self) -> bool:
        """Trials fail and none succeeds."""
        return self.consecutive_failures >= MAX_CONSECUTIVE_FAILURES


@dataclass(frozen=True)
class Settings:
    """What the agent was started with."""

    count: int | None = None
    """Trials to start at most."""
    grace: float = 60.0
    """Seconds that trials may take to save their work after a first signal."""
    patience: float = 900.0
    """Seconds for which the server may be silent."""
    adjusts_slots: bool = False
    """Workers say how many slots they want."""
    pauses: bool = False
    """Trials that the server stops may be sent again (asha)."""
    max_openings: int = MAX_OPENINGS


class Phase(StrEnum):
    """What the agent is doing."""

    WORKING = "working"
    SHUTTING_DOWN = "shutting down"
    """A signal came or time is up: running trials save their work and are put back."""
    SERVICE_LOST = "service lost"
    """wandb's service process is gone: nothing can be sent, only the workers can still save their work."""
    ABORTING = "aborting"
    """An error ends the agent: runs are put back within seconds."""
    ENDED = "ended"


class AgentOutcome(StrEnum):
    """How the agent ended."""

    DONE = "done"
    KILLED = "killed"
    """A second signal, or the grace time was over: what still ran was not put back."""
    RESTART = "restart"
    """Another process must continue: this one has lost wandb's service."""
    ERROR = "error"


@dataclass(frozen=True)
class AgentState:
    """Everything that the scheduler decides by."""

    devices: Mapping[str, DeviceState]
    slots: Mapping[int, Slot]
    settings: Settings
    requeued: tuple[Assignment, ...] = ()
    """Trials that come before new ones: open ones of quarantined devices, and those of dead agents."""
    stats: AgentStats = AgentStats()
    phase: Phase = Phase.WORKING
    deadline: float = float("inf")
    """Time at which the present phase ends whatever is left."""
    outcome: AgentOutcome | None = None
    """When it has ended."""
    error: Exception | None = None
    """Why it aborts, or must restart."""
    forecast: Forecast | None = None
    """How long trials take here; None: the agent has no time limit."""
    time_left: float = float("inf")
    """Seconds in which trials may run."""
    worker_exits: tuple[WorkerExit, ...] = ()
    """Since a trial last ended well on the device."""
    culprits: frozenset[str] = frozenset()
    """Trials that were found to kill workers."""
    said_once: frozenset[str] = frozenset()
    """Messages that are not repeated while their cause lasts."""
    ticked_at: float | None = None
    """Time of the last tick."""
    server_silence: float = 0.0
    """Seconds."""
    server_warned: bool = False
    """The present silence was reported."""
    workers_started: int = 0

    @classmethod
    def of(
        cls, devices: Mapping[Device, str], slots_per_device: int, settings: Settings, **more: Any
    ) -> "AgentState":
        """The first state of an agent; `devices`: each with its log; `more`: other fields."""
        names = [device.name for device in devices for _ in range(slots_per_device)]
        return cls(
            {device.name: DeviceState(device, log) for device, log in devices.items()},
            {number: Slot(number, name) for number, name in enumerate(names)},
            settings,
            **more,
        )

    @property
    def is_draining(self) -> bool:
        """It starts no trials; running ones may finish."""
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
        """Nothing is left to do."""
        waiting = any(trial.is_open for trial in self.requeued)
        return not waiting and all(slot.closed and slot.trial is None for slot in self.slots.values())

    @property
    def trials_left(self) -> int | None:
        """Trials for the agent that replaces this one, those that it holds included; None: any number."""
        count = self.settings.count
        held = sum(slot.trial is not None for slot in self.slots.values())
        held += sum(trial.is_open for trial in self.requeued)
        return None if count is None else count - self.stats.started + held
