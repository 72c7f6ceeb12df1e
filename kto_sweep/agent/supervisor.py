"""One supervisor per box: asks the sweep for trials, gives them to its workers, keeps their W&B runs.

Everything that happens arrives in one queue (see events.py) and is handled on one thread:

Told, Opened, Closed --> places.py    Said --> trials.py    Died --> deaths.py    Signalled --> departure.py
"""

import atexit
import os
import queue
import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from kto_sweep.agent.deaths import Deaths
from kto_sweep.agent.departure import Departure
from kto_sweep.agent.devices import Device
from kto_sweep.agent.display import Display
from kto_sweep.agent.events import (
    Closed,
    Died,
    Event,
    Events,
    Lost,
    Opened,
    Said,
    ServiceGone,
    Signalled,
    StopAsked,
    Told,
)
from kto_sweep.agent.floor import Floor
from kto_sweep.agent.lifeline import Lifeline
from kto_sweep.agent.one_trial import OneTrial
from kto_sweep.agent.places import Places
from kto_sweep.agent.presence import Orphan, Presence
from kto_sweep.agent.runs import Objective, ServiceGoneError
from kto_sweep.agent.silence import Silence
from kto_sweep.agent.slots import Station
from kto_sweep.agent.stations import Stations
from kto_sweep.agent.stillness import Stillness
from kto_sweep.agent.tally import Tally
from kto_sweep.agent.timekeeper import Timekeeper
from kto_sweep.agent.trials import OPENINGS, Trials
from kto_sweep.agent.worker_process import WorkerProcess
from kto_sweep.alerts import AlertRule
from kto_sweep.fingerprints import Trained, Witness
from kto_sweep.home import Home
from kto_sweep.protocol import Broken, Done, MakeRoom, Message, Ready
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.wandb_client.private_api import Command, kill_wandb_core, wandb_core_exited

if TYPE_CHECKING:
    import wandb

TICK_SECONDS = 1.0
SIGNAL_SECONDS = 2.0
"""How long after the end of wandb's service a signal may come that was meant for both."""
LAST_SECONDS = 20.0
"""How long runs may take to be closed when the agent ends for a reason of its own."""


class Supervisor:
    """Runs trials of one sweep on the devices of this box until the sweep ends."""

    def __init__(
        self,
        api: "wandb.Api",
        ref: SweepRef,
        home: Home,
        devices: Sequence[Device],
        display: Display,
        presence: Presence,
        lifeline: Lifeline,
        *,
        metric: str,
        goal: str,
        local: bool,
        trials_per_device: int | None = None,
        count: int | None = None,
        grace: float,
        patience: float,
        orphans: Sequence[Orphan] = (),
        alerts: Sequence[AlertRule] = (),
        only: Command | None = None,
        pauses: bool = False,
        timekeeper: Timekeeper | None = None,
        earlier: Sequence[Trained] = (),
    ) -> None:
        """`only`: train this trial, which is of no sweep, and ask no server for others.

        `trials_per_device`: None: workers say how many slots they want.
        `pauses`: trials that the server stops may be handed out again, by successive halving.
        `timekeeper`: begin and end trials as it says; None: there is time without end.
        `earlier`: the sweep's trials of which is known what they were trained on.
        """
        self._sweep = str(ref)
        self._display = display
        self._timekeeper = timekeeper
        self._witness = Witness(earlier, display.say)
        self._grows = trials_per_device is None
        self._events: Events = queue.SimpleQueue()
        self.tally = Tally(count)
        self._floor = Floor(devices, trials_per_device or 1, orphans)
        if only is None:
            self._stations = Stations(api, ref, home, display, self._events)
        else:
            self._stations = OneTrial(api, ref, home, display, self._events, only)
        self._trials = Trials(
            api, ref, home, display, self._events, self.tally, presence,
            objective=lambda: Objective(metric, goal), alerts=alerts, local=local, patience=patience,
            pauses=pauses, openings=OPENINGS if only is None else 1,
        )  # fmt: skip
        self._places = Places(self._floor, self._stations, self._trials, self.tally, display, timekeeper)
        self._deaths = Deaths(self._floor, self._stations, self._trials, self._places, display)
        self._departure = Departure(self._floor, self._stations, self._trials, grace)
        self._silence = Silence(lifeline, display, patience)
        self._stillness = Stillness(self._floor, display, self._deaths.give_up)
        self._lifeline = lifeline

    def run(self) -> Tally:
        """Work until the sweep ends, the count is reached, or a signal comes.

        Raises KtoSweepError when no worker can be started or the sweep was deleted, KeyboardInterrupt at a
        second signal and when the grace time is over.
        """
        handlers: dict[int, Callable[[int, FrameType | None], None] | int | None] = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)
        }
        handlers[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal was closed
        try:
            for station in self._floor.stations:
                self._stations.employ(station)
            while not self._floor.is_empty:
                self._step()
        except ServiceGoneError as error:
            if self._is_to_end():
                self._departure.wait_for_workers(self._next_event)
                raise KeyboardInterrupt from error
            # Nothing can be put back; the workers see that nobody is left, and put their trials away.
            self._floor.take_home()
            error.count = self.tally.left(sum(slot.work is not None for slot in self._floor.slots))
            error.sweep = self._sweep
            error.time_left = self._timekeeper.options if self._timekeeper else []
            raise
        except KeyboardInterrupt:
            self._departure.leave(0.0, self._next_event)
            raise
        except BaseException:
            self._departure.leave(LAST_SECONDS, self._next_event)
            atexit.register(os._exit, 1)  # else wandb's goodbye ends what is still open as finished
            raise
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return self.tally

    def _is_to_end(self) -> bool:
        """Whether this agent was leaving when its service ended, or the same signal has reached both.

        Whoever ends a job or shuts a box down signals all its processes at once.
        """
        deadline = time.monotonic() + SIGNAL_SECONDS
        while not self.tally.is_leaving and time.monotonic() < deadline:
            event = self._next_event()
            self._departure.hear_last(event)
            if isinstance(event, Signalled):
                self._interrupt(event.number)
            self._watch_the_time()
        return self.tally.is_leaving

    def _step(self) -> None:
        """Handle the next thing that happens, then look after what happens by itself."""
        if self._departure.is_overdue:
            raise KeyboardInterrupt  # the workers are killed on the way out
        self._handle(self._next_event())
        if wandb_core_exited():
            raise ServiceGoneError
        if self._lifeline.moved_to:
            kill_wandb_core()  # it knows the old address only
            raise ServiceGoneError(f"the server is at {self._lifeline.moved_to} now")
        self._places.order_ready()
        if not self.tally.is_leaving:
            self._stations.employ_due(self._floor.stations)
            self._stillness.watch()
        self._lifeline.refused = self._stations.refused
        if self._silence.is_too_long():
            self.tally.cut_off = True
            self._places.retire_idle()
        self._watch_the_time()

    def _watch_the_time(self) -> None:
        if self._timekeeper is not None and self._timekeeper.is_up and not self.tally.is_leaving:
            self.tally.time_is_up = True
            self._display.say("the time is over: ending the trials after the step they are in")
            self._departure.announce()

    def _next_event(self) -> Event | None:
        try:
            return self._events.get(timeout=TICK_SECONDS)
        except queue.Empty:
            return None

    def _handle(self, event: Event | None) -> None:
        match event:
            case Told(slot, commands):
                self._places.obey(slot, commands)
            case Said(station, message):
                self._hear(station, message)
            case Died(station, worker, status) if station.worker is worker:  # else it was dismissed
                self._bury(station, worker, status)
            case Opened():
                self._places.take_in(event)
            case Closed():
                self._trials.closed(event)
                self._places.serve(event.slot, soon=True)
            case StopAsked(run_id):
                for station in self._floor.stations:
                    self._trials.order_stop(station, run_id)
            case Signalled(number):
                self._interrupt(number)
            case Lost(error):
                if wandb_core_exited():
                    raise ServiceGoneError
                raise error
            case ServiceGone():
                raise ServiceGoneError

    def _hear(self, station: Station, message: Message) -> None:
        self._stillness.heard(station, message)
        match message:
            case Ready(device):
                station.ready = station.was_ready = True
                self._display.say(f"{station.device.name}: ready ({device})")
                for slot in station.slots:
                    if slot.work is None:
                        self._places.serve(slot)
            case Broken(text):
                station.last_words = text
            case MakeRoom() if self._grows:
                self._places.make_room(station, message)
            case MakeRoom():
                pass  # a number was given
            case _:
                holder = station.holder(message.run_id)
                if holder is not None:  # else a last word of a trial that was closed already
                    if isinstance(message, Done) and holder.work:
                        self._deaths.worked(station)
                        self._witness.see(Trained(message.run_id, holder.work.config, message.summary))
                        if self._timekeeper:
                            self._timekeeper.learn(holder.work.config, message)
                    self._trials.hear(holder, message)
                    if self.tally.is_leaving:
                        self._departure.clear(holder)

    def _bury(self, station: Station, worker: WorkerProcess, status: int) -> None:
        if not self.tally.is_leaving:
            self._deaths.bury(station, worker, status)
            return
        self._deaths.bury_last(station, worker, status)
        for slot in station.slots:
            self._departure.clear(slot)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._events.put(Signalled(number))

    def _interrupt(self, number: int) -> None:
        if self.tally.interrupted:
            raise KeyboardInterrupt  # a second signal: the workers are killed on the way out
        self.tally.interrupted = number
        self._display.say("ending the trials after the step they are in; once more to end them now")
        self._departure.announce()
