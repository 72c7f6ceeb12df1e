"""One supervisor per box: asks the sweep for trials, gives them to its workers, keeps their W&B runs.

Everything that happens arrives in one queue and is handled on one thread:

    heartbeat of a slot --> Told       worker --> Said, Died       signals --> Signalled
"""

import queue
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import TYPE_CHECKING

from kto_sweep.agent.devices import Device
from kto_sweep.agent.display import Display
from kto_sweep.agent.heart import Heart
from kto_sweep.agent.link import Command, heartbeat, register_agent
from kto_sweep.agent.runs import Objective, TrialRun
from kto_sweep.agent.slots import Slot, Station, Work
from kto_sweep.agent.worker_process import WorkerProcess
from kto_sweep.errors import FailureCause, KtoSweepError, ServerError
from kto_sweep.home import Home
from kto_sweep.protocol import (
    Alert,
    Done,
    Failed,
    Message,
    Metrics,
    Note,
    Planned,
    Preparing,
    Ready,
    Start,
    Stop,
)
from kto_sweep.sweep_ref import SweepRef

if TYPE_CHECKING:
    import wandb

GRACE_SECONDS = 60.0
"""How long trials may take to end their step and be put away after a first signal."""
FAILURES_IN_A_ROW = 5
"""So many failed trials with none that succeeded mean that the next will fail as well."""
IDLE_DEATHS = 3
"""So many deaths of a worker that has no trial mean that it cannot work here."""
ATTEMPTS = 3
"""Workers that may die under a trial before it counts as failed."""


@dataclass(frozen=True)
class Told:
    """The server's commands for a slot."""

    slot: Slot
    commands: list[Command]


@dataclass(frozen=True)
class Lost:
    """The server does not know the sweep any more."""

    error: ServerError


@dataclass(frozen=True)
class Said:
    """A message of a worker."""

    station: Station
    message: Message


@dataclass(frozen=True)
class Died:
    """A worker ended, with this exit status."""

    station: Station
    worker: WorkerProcess
    status: int


@dataclass(frozen=True)
class StopAsked:
    """The server wants a run to stop (the way that bypasses the agent)."""

    station: Station
    run_id: str


@dataclass(frozen=True)
class Signalled:
    """This process got a signal."""

    number: int


Event = Told | Lost | Said | Died | StopAsked | Signalled


@dataclass
class Tally:
    """What this agent did."""

    started: int = 0
    finished: int = 0
    stopped: int = 0
    failed: int = 0
    failed_in_a_row: int = field(default=0, repr=False)
    interrupted: int = 0
    """The signal that ended it, or 0."""


class Supervisor:
    """Runs trials of one sweep on the devices of this box until the sweep ends."""

    def __init__(
        self,
        api: "wandb.Api",
        ref: SweepRef,
        home: Home,
        devices: Sequence[Device],
        display: Display,
        *,
        metric: str,
        goal: str,
        local: bool,
        trials_per_device: int = 1,
        count: int | None = None,
    ) -> None:
        self._api = api
        self._ref = ref
        self._home = home
        self._display = display
        self._metric = metric
        self._goal = goal
        self._local = local
        self._count = count
        self._stations = [Station(device) for device in devices]
        for station in self._stations:
            station.slots = [Slot(station) for _ in range(trials_per_device)]
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._deadline = float("inf")
        self.tally = Tally()

    def run(self) -> Tally:
        """Work until the sweep ends, the count is reached, or a signal comes.

        Raises KtoSweepError when no worker can be started or the sweep was deleted, KeyboardInterrupt at a
        second signal.
        """
        numbers = (signal.SIGINT, signal.SIGTERM)
        handlers = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            for station in self._stations:
                self._employ(station)
            while not all(station.ended for station in self._stations):
                self._handle_next()
        finally:
            for slot in self._slots():
                self._dismiss(slot)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return self.tally

    def _slots(self) -> list[Slot]:
        return [slot for station in self._stations for slot in station.slots]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._events.put(Signalled(number))

    def _handle_next(self) -> None:
        if time.monotonic() > self._deadline:
            raise KeyboardInterrupt  # the grace time is over: the workers are killed on the way out
        try:
            event = self._events.get(timeout=1.0)
        except queue.Empty:
            return
        match event:
            case Told(slot, commands):
                self._obey(slot, commands)
            case Said(station, message):
                self._hear(station, message)
            case Died(station, worker, status):
                self._bury(station, worker, status)
            case StopAsked(station, run_id):
                self._order_stop(station, run_id)
            case Signalled(number):
                self._interrupt(number)
            case Lost(error):
                raise error

    # A station's life: its worker is employed, its slots register when it is ready, and in the end all are
    # dismissed. A worker that dies is replaced, and the new one goes on with the trials of the old one.

    def _employ(self, station: Station) -> None:
        log = self._home.root / "workers" / f"{station.device.name.replace(' ', '-')}.log"
        worker = WorkerProcess(
            station.device,
            self._home,
            log,
            on_message=lambda message: self._events.put(Said(station, message)),
            on_death=lambda status: self._events.put(Died(station, worker, status)),
        )
        station.worker, station.ready = worker, False

    def _welcome(self, station: Station, device: str) -> None:
        station.ready = True
        self._display.say(f"{station.device.name}: ready ({device})")
        for slot in station.slots:
            if slot.work is not None:
                self._order_start(slot, slot.work)
            elif slot.heart is None:
                slot.heart = self._register(slot)
                slot.heart.start()

    def _register(self, slot: Slot) -> Heart:
        agent_id = register_agent(self._api, self._ref, f"{socket.gethostname()} {slot.station.device.name}")
        return Heart(
            beat=lambda running: heartbeat(self._api, agent_id, running),
            on_commands=lambda commands: self._events.put(Told(slot, commands)),
            on_loss=lambda error: self._events.put(Lost(error)),
        )

    def _dismiss(self, slot: Slot) -> None:
        """End a slot, and with the last one of a station its worker; a trial in it is put back."""
        slot.ended = True
        if slot.heart is not None:
            slot.heart.end()
        station = slot.station
        if station.ended and station.worker is not None:
            worker, station.worker = station.worker, None
            worker.end(at_once=any(other.work for other in station.slots))
        if slot.work is not None:
            self._close(slot, TrialRun.preempt)

    def _bury(self, station: Station, worker: WorkerProcess, status: int) -> None:
        """Employ another worker in place of a dead one, for the same trials."""
        if station.worker is not worker:
            return  # it was dismissed
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        working = [slot for slot in station.slots if slot.work is not None]
        station.worker = None
        station.idle_deaths = 0 if working else station.idle_deaths + 1
        if not station.ready or station.idle_deaths >= IDLE_DEATHS:
            raise KtoSweepError(
                f"the worker on {station.device.name} ended with {how}:\n{worker.last_words()}",
                hint=f"its whole log: {worker.log}",
            )
        self._display.say(f"{station.device.name}: the worker ended with {how}; starting another")
        for slot in working:
            assert slot.work is not None
            if slot.work.attempt >= ATTEMPTS:
                text = f"{ATTEMPTS} workers ended under this trial, the last with {how}; log: {worker.log}"
                self._failed(slot, FailureCause.WORKER_CRASH, text)
            else:
                slot.work = replace(slot.work, attempt=slot.work.attempt + 1)
        if not station.ended:
            self._employ(station)

    def _obey(self, slot: Slot, commands: Sequence[Command]) -> None:
        assert slot.heart is not None
        for command in commands:
            match command.kind:
                case "run" | "resume" if slot.work is None:
                    if not self._is_full():
                        self._begin(slot, command)
                    self._retire_idle()  # a trial that is not begun here is handed out again by the server
                case "stop":
                    self._order_stop(slot.station, command.run_id)
                case "exit" if slot.work is None:
                    self._dismiss(slot)
        slot.heart.resume([slot.work.run_id] if slot.work else [])

    def _retire_idle(self) -> None:
        """Dismiss the slots that have no trial when none is to be started any more."""
        if self._is_full():
            for slot in self._slots():
                if slot.work is None:
                    self._dismiss(slot)

    def _is_full(self) -> bool:
        if self.tally.interrupted or self.tally.failed_in_a_row >= FAILURES_IN_A_ROW:
            return True
        return self._count is not None and self.tally.started >= self._count

    # A trial's life: begun, heard of, closed.

    def _begin(self, slot: Slot, command: Command) -> None:
        run_id, config, station = command.run_id, command.config or {}, slot.station
        run = TrialRun.open(
            self._ref,
            run_id,
            config,
            self._home.runs / run_id,
            objective=Objective(self._metric, self._goal),
            local=self._local,
            on_stop=lambda: self._events.put(StopAsked(station, run_id)),
        )
        slot.work = Work(run_id, config, run)
        self.tally.started += 1
        self._display.started(run_id, run.name, config, station.device.name)
        if station.ready:
            self._order_start(slot, slot.work)

    def _order_start(self, slot: Slot, work: Work) -> None:
        assert slot.station.worker is not None
        folder = str(self._home.runs / work.run_id)
        slot.station.worker.send(Start(work.run_id, work.config, folder, work.run.logged_steps))

    def _order_stop(self, station: Station, run_id: str) -> None:
        if station.holder(run_id) is not None and station.worker is not None:
            station.worker.send(Stop(run_id))

    def _hear(self, station: Station, message: Message) -> None:
        if isinstance(message, Ready):
            self._welcome(station, message.device)
            return
        slot = station.holder(message.run_id)
        if slot is None or slot.work is None:
            return  # a last word of a trial that was closed already
        run = slot.work.run
        match message:
            case Preparing(run_id, what, done, total):
                self._display.preparing(run_id, what, done, total)
            case Planned(run_id, total_steps, done_steps):
                run.plan(total_steps, done_steps)
                self._display.planned(run_id, total_steps, done_steps)
            case Metrics(run_id, step, values):
                run.metrics(step, values)
                self._display.progress(run_id, step, values)
            case Note(_, text):
                run.note(text)
            case Alert(_, title, text):
                run.alert(title, text)
            case Done():
                self._done(slot, message)
            case Failed(_, cause, text, hint, trace):
                if trace:
                    run.note(trace)
                self._failed(slot, cause, f"{text}\n  Hint: {hint}" if hint else text)

    def _done(self, slot: Slot, message: Done) -> None:
        if not message.stopped:
            self.tally.finished += 1
            self.tally.failed_in_a_row = 0
            self._close(slot, lambda run: run.succeed(message.summary))
            self._display.ended(message.run_id, "finished", message.summary)
        elif self.tally.interrupted:
            self._close(slot, TrialRun.preempt)
            self._display.ended(message.run_id, "put back", message.summary)
        else:
            self.tally.stopped += 1
            self._close(slot, lambda run: run.stop(message.summary))
            self._display.ended(message.run_id, "stopped", message.summary)
        self._next(slot)

    def _failed(self, slot: Slot, cause: str, text: str) -> None:
        assert slot.work is not None
        self.tally.failed += 1
        if not self.tally.finished:
            self.tally.failed_in_a_row += 1
        run_id = slot.work.run_id
        self._close(slot, lambda run: run.fail(cause, text))
        self._display.failed(run_id, cause, text)
        if self.tally.failed_in_a_row == FAILURES_IN_A_ROW:
            self._display.say(f"{FAILURES_IN_A_ROW} trials failed and none succeeded: no more are started")
        self._next(slot)

    def _close(self, slot: Slot, how: Callable[[TrialRun], None]) -> None:
        assert slot.work is not None
        work, slot.work = slot.work, None
        how(work.run)

    def _next(self, slot: Slot) -> None:
        """Ask for the next trial, or end the slot when there is to be none."""
        if self._is_full():
            self._dismiss(slot)
        elif slot.heart is not None:
            slot.heart.resume([], soon=True)

    def _interrupt(self, number: int) -> None:
        if self.tally.interrupted:
            raise KeyboardInterrupt  # a second signal: the workers are killed on the way out
        self.tally.interrupted = number
        self._deadline = time.monotonic() + GRACE_SECONDS
        self._display.say("ending the trials after the step they are in; once more to end them now")
        for slot in self._slots():
            if slot.work is None:
                self._dismiss(slot)
            else:
                self._order_stop(slot.station, slot.work.run_id)
