"""One supervisor per box: asks the sweep for trials, gives them to its workers, keeps their W&B runs.

Everything that happens arrives in one queue and is handled on one thread:

    heartbeat of a slot --> Told       worker --> Said, Died       signals --> Signalled
"""

import queue
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from kto_sweep.agent.devices import Device
from kto_sweep.agent.display import Display
from kto_sweep.agent.heart import Heart
from kto_sweep.agent.link import Command, heartbeat, register_agent
from kto_sweep.agent.runs import Objective, TrialRun
from kto_sweep.agent.worker_process import WorkerProcess
from kto_sweep.errors import FailureCause, KtoSweepError, ServerError
from kto_sweep.home import Home
from kto_sweep.protocol import Done, Failed, Message, Metrics, Note, Planned, Preparing, Ready, Start, Stop
from kto_sweep.sweep_ref import SweepRef

if TYPE_CHECKING:
    import wandb

GRACE_SECONDS = 60.0
"""How long trials may take to end their step and be put away after a first signal."""
FAILURES_IN_A_ROW = 5
"""So many failed trials with none that succeeded mean that the next will fail as well."""
IDLE_DEATHS = 3
"""So many deaths of a worker that has no trial mean that it cannot work here."""


@dataclass(frozen=True)
class Told:
    """The server's commands for a slot."""

    slot: "Slot"
    commands: list[Command]


@dataclass(frozen=True)
class Lost:
    """The server does not know the sweep any more."""

    error: ServerError


@dataclass(frozen=True)
class Said:
    """A message of a slot's worker."""

    slot: "Slot"
    message: Message


@dataclass(frozen=True)
class Died:
    """A slot's worker ended, with this exit status."""

    slot: "Slot"
    worker: WorkerProcess
    status: int


@dataclass(frozen=True)
class StopAsked:
    """The server wants a run to stop (the way that bypasses the agent)."""

    slot: "Slot"
    run_id: str


@dataclass(frozen=True)
class Signalled:
    """This process got a signal."""

    number: int


Event = Told | Lost | Said | Died | StopAsked | Signalled


@dataclass(eq=False)
class Slot:
    """Room for one trial on one device: a worker, a registered agent, and the run of the trial in it."""

    device: Device
    worker: WorkerProcess | None = None
    heart: Heart | None = None
    run_id: str = ""
    run: TrialRun | None = None
    idle_deaths: int = 0
    ended: bool = False


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
        self._slots = [Slot(device) for device in devices]
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._deadline = float("inf")
        self.tally = Tally()

    def run(self) -> Tally:
        """Work until the sweep ends, the count is reached, or a signal comes.

        Raises KtoSweepError when no worker can be started or the sweep was deleted.
        """
        handlers = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            for slot in self._slots:
                self._employ(slot)
            while not all(slot.ended for slot in self._slots):
                self._handle_next()
        finally:
            for slot in self._slots:
                self._dismiss(slot)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return self.tally

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
            case Said(slot, message):
                self._hear(slot, message)
            case Died(slot, worker, status):
                self._bury(slot, worker, status)
            case StopAsked(slot, run_id):
                self._order_stop(slot, run_id)
            case Signalled(number):
                self._interrupt(number)
            case Lost(error):
                raise error

    # A slot's life: its worker is employed, registers when ready, works trial after trial, and is dismissed.

    def _employ(self, slot: Slot) -> None:
        log = self._home.root / "workers" / f"{slot.device.name.replace(' ', '-')}.log"
        worker = WorkerProcess(
            slot.device,
            self._home,
            log,
            on_message=lambda message: self._events.put(Said(slot, message)),
            on_death=lambda status: self._events.put(Died(slot, worker, status)),
        )
        slot.worker = worker

    def _register(self, slot: Slot) -> None:
        agent_id = register_agent(self._api, self._ref, f"{socket.gethostname()} {slot.device.name}")
        slot.heart = Heart(
            beat=lambda running: heartbeat(self._api, agent_id, running),
            on_commands=lambda commands: self._events.put(Told(slot, commands)),
            on_loss=lambda error: self._events.put(Lost(error)),
        )
        slot.heart.start()

    def _dismiss(self, slot: Slot) -> None:
        if slot.ended and slot.worker is None:
            return
        slot.ended = True
        if slot.heart is not None:
            slot.heart.end()
        if slot.worker is not None:
            worker, slot.worker = slot.worker, None
            if slot.run is None:
                worker.end()
            else:
                worker.kill()
                self._close(slot, lambda run: run.preempt())

    def _obey(self, slot: Slot, commands: Sequence[Command]) -> None:
        assert slot.heart is not None
        for command in commands:
            match command.kind:
                case "run" | "resume" if slot.run is None:
                    if not self._is_full():
                        self._begin(slot, command.run_id, command.config or {})
                    self._retire_idle()  # a trial that is not begun here is handed out again by the server
                case "stop":
                    self._order_stop(slot, command.run_id)
                case "exit" if slot.run is None:
                    self._dismiss(slot)
        slot.heart.resume([slot.run_id] if slot.run else [])

    def _retire_idle(self) -> None:
        """Dismiss the slots that have no trial when none is to be started any more."""
        if self._is_full():
            for slot in self._slots:
                if slot.run is None:
                    self._dismiss(slot)

    def _is_full(self) -> bool:
        if self.tally.interrupted or self.tally.failed_in_a_row >= FAILURES_IN_A_ROW:
            return True
        return self._count is not None and self.tally.started >= self._count

    # A trial's life: begun, heard of, closed.

    def _begin(self, slot: Slot, run_id: str, config: Mapping[str, Any]) -> None:
        assert slot.worker is not None
        folder = self._home.runs / run_id
        slot.run = TrialRun.open(
            self._ref,
            run_id,
            config,
            folder,
            objective=Objective(self._metric, self._goal),
            local=self._local,
            on_stop=lambda: self._events.put(StopAsked(slot, run_id)),
        )
        slot.run_id = run_id
        self.tally.started += 1
        slot.worker.send(Start(run_id, config, str(folder)))
        self._display.started(run_id, slot.run.name, config, slot.device.name)

    def _order_stop(self, slot: Slot, run_id: str) -> None:
        if slot.run is not None and slot.run_id == run_id and slot.worker is not None:
            slot.worker.send(Stop(run_id))

    def _hear(self, slot: Slot, message: Message) -> None:
        if isinstance(message, Ready):
            self._display.say(f"{slot.device.name}: ready ({message.device})")
            if slot.heart is None:
                self._register(slot)
            else:
                slot.heart.resume([], soon=True)
            return
        if slot.run is None or message.run_id != slot.run_id:
            return  # a last word of a trial that was closed already
        match message:
            case Preparing(run_id, what, done, total):
                self._display.preparing(run_id, what, done, total)
            case Planned(run_id, total_steps):
                slot.run.plan(total_steps)
                self._display.planned(run_id, total_steps)
            case Metrics(run_id, step, values):
                slot.run.metrics(step, values)
                self._display.progress(run_id, step, values)
            case Note(_, text):
                slot.run.note(text)
            case Done():
                self._done(slot, message)
            case Failed(_, cause, text, hint, trace):
                slot.run.note(trace)
                self._failed(slot, cause, f"{text}\n  Hint: {hint}" if hint else text)

    def _done(self, slot: Slot, message: Done) -> None:
        if not message.stopped:
            self.tally.finished += 1
            self.tally.failed_in_a_row = 0
            self._close(slot, lambda run: run.succeed(message.summary))
            self._display.ended(message.run_id, "finished", message.summary)
        elif self.tally.interrupted:
            self._close(slot, lambda run: run.preempt())
            self._display.ended(message.run_id, "put back", message.summary)
        else:
            self.tally.stopped += 1
            self._close(slot, lambda run: run.stop(message.summary))
            self._display.ended(message.run_id, "stopped", message.summary)
        self._next(slot)

    def _failed(self, slot: Slot, cause: str, text: str) -> None:
        self.tally.failed += 1
        if not self.tally.finished:
            self.tally.failed_in_a_row += 1
        run_id = slot.run_id
        self._close(slot, lambda run: run.fail(cause, text))
        self._display.failed(run_id, cause, text)
        if self.tally.failed_in_a_row >= FAILURES_IN_A_ROW:
            self._display.say(f"{FAILURES_IN_A_ROW} trials failed and none succeeded: no more are started")
        self._next(slot)

    def _close(self, slot: Slot, how: Callable[[TrialRun], None]) -> None:
        run, slot.run, slot.run_id = slot.run, None, ""
        assert run is not None
        how(run)

    def _next(self, slot: Slot) -> None:
        """Ask for the next trial, or end the slot when there is to be none."""
        if self._is_full():
            self._dismiss(slot)
        elif slot.heart is not None:
            slot.heart.resume([], soon=True)

    def _bury(self, slot: Slot, worker: WorkerProcess, status: int) -> None:
        """Close the trial of a dead worker and employ another."""
        if slot.worker is not worker:
            return  # it was dismissed
        slot.worker = None
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        if slot.run is not None:
            slot.idle_deaths = 0
            self._failed(
                slot, FailureCause.WORKER_CRASH, f"the worker ended with {how}; its log: {worker.log}"
            )
        else:
            slot.idle_deaths += 1
            if slot.idle_deaths >= IDLE_DEATHS or slot.heart is None:
                raise KtoSweepError(
                    f"the worker on {slot.device.name} ended with {how}:\n{worker.last_words()}",
                    hint=f"its whole log: {worker.log}",
                )
        if not slot.ended:
            self._employ(slot)

    def _interrupt(self, number: int) -> None:
        if self.tally.interrupted:
            raise KeyboardInterrupt  # a second signal: the workers are killed on the way out
        self.tally.interrupted = number
        self._deadline = time.monotonic() + GRACE_SECONDS
        self._display.say("ending the trials after the step they are in; once more to end them now")
        for slot in self._slots:
            if slot.run is None:
                self._dismiss(slot)
            else:
                self._order_stop(slot, slot.run_id)
