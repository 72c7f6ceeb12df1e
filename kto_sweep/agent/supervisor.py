"""One supervisor per box: asks the sweep for trials, gives them to its workers, keeps their W&B runs.

Everything that happens arrives in one queue (see events.py) and is handled on one thread.
"""

import queue
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

from kto_sweep.agent.devices import Device
from kto_sweep.agent.display import Display
from kto_sweep.agent.events import Died, Events, Lost, Said, Signalled, StopAsked, Told
from kto_sweep.agent.link import Command
from kto_sweep.agent.runs import Objective
from kto_sweep.agent.slots import Slot, Station
from kto_sweep.agent.stations import Stations
from kto_sweep.agent.tally import Tally
from kto_sweep.agent.trials import Trials
from kto_sweep.agent.worker_process import WorkerProcess
from kto_sweep.errors import FailureCause
from kto_sweep.home import Home
from kto_sweep.protocol import MakeRoom, Message, Ready
from kto_sweep.sweep_ref import SweepRef

if TYPE_CHECKING:
    import wandb

GRACE_SECONDS = 60.0
"""How long trials may take to end their step and be put away after a first signal."""
ATTEMPTS = 3
"""Workers that may die under a trial before it counts as failed."""


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
        trials_per_device: int | None = None,
        count: int | None = None,
    ) -> None:
        self._display = display
        self._all = [Station(device) for device in devices]
        for station in self._all:
            station.slots = [Slot(station) for _ in range(trials_per_device or 1)]
        self._grows = trials_per_device is None
        self._events: Events = queue.SimpleQueue()
        self._deadline = float("inf")
        self.tally = Tally(count)
        self._stations = Stations(api, ref, home, display, self._events)
        self._trials = Trials(
            ref, home, display, self._events, self.tally,
            objective=lambda: Objective(metric, goal), local=local,
        )  # fmt: skip

    def run(self) -> Tally:
        """Work until the sweep ends, the count is reached, or a signal comes.

        Raises KtoSweepError when no worker can be started or the sweep was deleted, KeyboardInterrupt at a
        second signal.
        """
        numbers = (signal.SIGINT, signal.SIGTERM)
        handlers = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            for station in self._all:
                self._stations.employ(station)
            while not all(station.ended for station in self._all):
                self._handle_next()
        finally:
            for slot in self._slots():
                self._dismiss(slot)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return self.tally

    def _slots(self) -> list[Slot]:
        return [slot for station in self._all for slot in station.slots]

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
            case StopAsked(run_id):
                for station in self._all:
                    self._trials.order_stop(station, run_id)
            case Signalled(number):
                self._interrupt(number)
            case Lost(error):
                raise error

    def _hear(self, station: Station, message: Message) -> None:
        if isinstance(message, Ready):
            self._welcome(station, message.device)
            return
        if isinstance(message, MakeRoom):
            if self._grows:
                self._make_room(station, message)
            return
        slot = station.holder(message.run_id)
        # No slot: a last word of a trial that was closed already.
        if slot is not None and self._trials.hear(slot, message):
            self._next(slot)

    def _welcome(self, station: Station, device: str) -> None:
        station.ready = True
        self._display.say(f"{station.device.name}: ready ({device})")
        for slot in station.slots:
            if slot.work is not None:
                self._trials.order(slot)
            elif slot.heart is None:
                self._stations.register(slot)

    def _make_room(self, station: Station, message: MakeRoom) -> None:
        """Have as many slots as the worker wants; one that is too many ends with its trial."""
        if message.reason:
            self._display.say(f"{station.device.name}: {message.reason}")
        station.wanted = message.slots
        for slot in station.grow(message.slots) if not self.tally.is_full else []:
            self._stations.register(slot)
        self._retire_idle()

    def _bury(self, station: Station, worker: WorkerProcess, status: int) -> None:
        """Employ another worker in place of a dead one, for the same trials."""
        if station.worker is not worker:
            return  # it was dismissed
        how = self._stations.bury(station, worker, status)
        for slot in station.slots:
            if slot.work is None:
                continue
            if slot.work.attempt >= ATTEMPTS:
                text = f"{ATTEMPTS} workers ended under this trial, the last with {how}; log: {worker.log}"
                self._trials.fail(slot, FailureCause.WORKER_CRASH, text)
                self._next(slot)
            else:
                slot.work = replace(slot.work, attempt=slot.work.attempt + 1)
        if not station.ended:
            self._stations.employ(station)

    def _obey(self, slot: Slot, commands: Sequence[Command]) -> None:
        assert slot.heart is not None
        for command in commands:
            match command.kind:
                case "run" | "resume" if slot.work is None:
                    if not self.tally.is_full:
                        self._trials.begin(slot, command)
                    self._retire_idle()  # a trial that is not begun here is handed out again by the server
                case "stop":
                    self._trials.order_stop(slot.station, command.run_id)
                case "exit" if slot.work is None:
                    slot.station.exhausted = True
                    self._dismiss(slot)
        slot.heart.resume([slot.work.run_id] if slot.work else [])

    def _retire_idle(self) -> None:
        """Dismiss the slots that have no trial and are to get none."""
        for slot in self._slots():
            if slot.work is None and self._is_done(slot):
                self._dismiss(slot)

    def _is_done(self, slot: Slot) -> bool:
        return self.tally.is_full or len(slot.station.open) > slot.station.wanted

    def _next(self, slot: Slot) -> None:
        """Ask for the next trial, or end the slot when there is to be none."""
        if self._is_done(slot):
            self._dismiss(slot)
        elif slot.heart is not None:
            slot.heart.resume([], soon=True)

    def _dismiss(self, slot: Slot) -> None:
        """End a slot; a trial in it is put back."""
        self._stations.dismiss(slot)
        if slot.work is not None:
            self._trials.put_back(slot)

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
                self._trials.order_stop(slot.station, slot.work.run_id)
