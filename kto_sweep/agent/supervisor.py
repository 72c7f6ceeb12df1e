"""One supervisor per box: asks the sweep for trials, gives them to its workers, keeps their W&B runs.

Everything that happens arrives in one queue (see events.py) and is handled on one thread.
"""

import atexit
import os
import queue
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from kto_sweep.agent.blame import SUSPICIOUS, Death, cause_of_death, is_hardware, is_retried, is_sick
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
from kto_sweep.agent.lifeline import Lifeline
from kto_sweep.agent.link import Command, service_has_ended
from kto_sweep.agent.one_trial import OneTrial
from kto_sweep.agent.presence import Orphan, Presence
from kto_sweep.agent.runs import Objective, ServiceGoneError
from kto_sweep.agent.slots import Slot, Station, Work
from kto_sweep.agent.stations import IDLE_DEATHS, Stations
from kto_sweep.agent.tally import Tally
from kto_sweep.agent.timekeeper import Timekeeper
from kto_sweep.agent.trials import Trials
from kto_sweep.agent.worker_process import WorkerProcess
from kto_sweep.alerts import AlertRule
from kto_sweep.errors import KtoSweepError
from kto_sweep.home import Home
from kto_sweep.protocol import Broken, Done, MakeRoom, Message, Ready
from kto_sweep.sweep.ref import SweepRef

if TYPE_CHECKING:
    import wandb

TICK_SECONDS = 1.0
SILENCE_SECONDS = 45.0
"""A server that does not answer for so long is spoken of."""
ADOPTIONS = 5
"""Times that it is tried to take over a trial, when the server cannot be asked."""
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
        timekeeper: Timekeeper | None = None,
    ) -> None:
        """`only`: train this trial, which is of no sweep, and ask no server for others.

        `timekeeper`: begin and end trials as it says; None: there is time without end.
        """
        self._display = display
        self._lifeline = lifeline
        self._grace = grace
        self._patience = patience
        self._timekeeper = timekeeper
        self._all = [Station(device) for device in devices]
        for station in self._all:
            station.slots = [Slot(station) for _ in range(trials_per_device or 1)]
        self._grows = trials_per_device is None
        """Workers say how many slots they want."""
        self._homeless: deque[Orphan | Work] = deque(orphans)
        """Trials that come before new ones: those of dead agents and of GPUs that are used no more."""
        self._tries: Counter[str] = Counter()
        self._deaths: list[Death] = []
        self._culprits: set[str] = set()
        self._silent = False
        self._events: Events = queue.SimpleQueue()
        self._deadline = float("inf")
        self.tally = Tally(count)
        if only is None:
            self._stations = Stations(api, ref, home, display, self._events)
        else:
            self._stations = OneTrial(api, ref, home, display, self._events, only)
        self._trials = Trials(
            api, ref, home, display, self._events, self.tally, presence,
            objective=lambda: Objective(metric, goal), alerts=alerts, local=local, patience=patience,
        )  # fmt: skip

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
            for station in self._all:
                self._stations.employ(station)
            while any(not slot.ended or slot.work for slot in self._slots()):
                self._handle_next()
        except ServiceGoneError as error:
            # Nothing can be put back; the workers see that nobody is left, and put their trials away.
            self._take_home()
            error.count = self.tally.left(sum(slot.work is not None for slot in self._slots()))
            error.until = self._timekeeper.ends if self._timekeeper else None
            raise
        except KeyboardInterrupt:
            self._leave(0.0)
            raise
        except BaseException:
            self._leave(LAST_SECONDS)
            atexit.register(os._exit, 1)  # else wandb's goodbye ends what is still open as finished
            raise
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return self.tally

    def _leave(self, seconds: float) -> None:
        """End everything; trials are put back as far as that can be done in this time."""
        deadline = time.monotonic() + seconds
        self._take_home()
        for slot in self._slots():
            self._stations.dismiss(slot)
            if seconds and slot.work is not None and slot.work.run is not None and not slot.work.closing:
                self._trials.put_back(slot)
        while any(slot.work for slot in self._slots()) and time.monotonic() < deadline:
            match self._next_event():
                case Closed() as event:
                    self._trials.closed(event)
                case Opened(slot) as event:
                    self._trials.opened(event)
                    if slot.work is not None:
                        self._trials.put_back(slot)

    def _slots(self) -> list[Slot]:
        return [slot for station in self._all for slot in station.slots]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._events.put(Signalled(number))

    def _next_event(self) -> Event | None:
        try:
            return self._events.get(timeout=TICK_SECONDS)
        except queue.Empty:
            return None

    def _handle_next(self) -> None:
        if time.monotonic() > self._deadline:
            raise KeyboardInterrupt  # the grace time is over: the workers are killed on the way out
        match self._next_event():
            case Told(slot, commands):
                self._obey(slot, commands)
            case Said(station, message):
                self._hear(station, message)
            case Died(station, worker, status) if station.worker is worker:  # else it was dismissed
                self._bury(station, worker, status)
            case Opened() as event:
                self._take_in(event)
            case Closed() as event:
                self._trials.closed(event)
                self._serve(event.slot, soon=True)
            case StopAsked(run_id):
                for station in self._all:
                    self._trials.order_stop(station, run_id)
            case Signalled(number):
                self._interrupt(number)
            case Lost(error):
                raise error
            case ServiceGone():
                raise ServiceGoneError
        if service_has_ended():
            raise ServiceGoneError
        self._order_ready()
        self._watch_server()
        self._watch_time()

    def _take_in(self, event: Opened) -> None:
        again, orphan = self._trials.opened(event), event.work.orphan
        if again and orphan is not None and self._tries[orphan.run_id] < ADOPTIONS:
            self._tries[orphan.run_id] += 1
            self._homeless.append(orphan)
        if event.slot.work is None:
            self._serve(event.slot)
        elif self.tally.is_leaving:
            self._trials.put_back(event.slot)

    def _order_ready(self) -> None:
        """Give the workers the trials that they can be given."""
        for slot in self._slots():
            if self._trials.give_up(slot):
                self._serve(slot)
            work, station = slot.work, slot.station
            if not station.ready or work is None or work.run is None or work.ordered or work.closing:
                continue
            if self._stations.may_start(station, work):
                self._trials.order(slot)

    def _hear(self, station: Station, message: Message) -> None:
        match message:
            case Ready(device):
                station.ready = True
                self._display.say(f"{station.device.name}: ready ({device})")
                for slot in station.slots:
                    if slot.work is None:
                        self._serve(slot)
            case Broken(text):
                station.last_words = text
            case MakeRoom() if self._grows:
                self._make_room(station, message)
            case MakeRoom():
                pass  # a number was given
            case _:
                holder = station.holder(message.run_id)
                if holder is not None:  # else a last word of a trial that was closed already
                    if self._timekeeper and isinstance(message, Done) and holder.work:
                        self._timekeeper.learn(holder.work.config, message)
                    self._trials.hear(holder, message)
                    if self.tally.is_leaving:
                        self._put_back_if_idle(holder)

    def _make_room(self, station: Station, message: MakeRoom) -> None:
        """Have as many slots as the worker wants; one that is too many ends with its trial."""
        if message.reason:
            self._display.say(f"{station.device.name}: {message.reason}")
        station.wanted = message.slots
        for slot in [] if self.tally.is_full else station.grow():
            self._serve(slot)
        for slot in station.open:
            if slot.work is None and station.crowded:
                self._stations.dismiss(slot)

    # A slot without a trial gets one that has lost its place, or asks the server, or is dismissed.

    def _serve(self, slot: Slot, *, soon: bool = False) -> None:
        if slot.ended or slot.work is not None:
            return
        if self._homeless and not self.tally.is_leaving:
            next_one = self._homeless[0]
            if isinstance(next_one, Work):
                slot.work = next_one
                self._homeless.popleft()
            elif not self.tally.is_full and self._affords(slot, next_one.run_id, next_one.config):
                self._trials.adopt(slot, next_one)
                self._homeless.popleft()
        if slot.work is not None:
            self._stations.ask(slot, [slot.work.run_id])
        elif self.tally.is_full or slot.station.crowded:
            self._stations.dismiss(slot)
        elif slot.station.ready:
            self._stations.ask(slot, [], soon=soon)

    def _obey(self, slot: Slot, commands: Sequence[Command]) -> None:
        for command in commands:
            match command.kind:
                case "run" | "resume" if slot.work is None:
                    free = not self.tally.is_full and not slot.ended
                    if free and self._affords(slot, command.run_id, command.config or {}):
                        self._trials.begin(slot, command)
                    self._retire_idle()  # a trial that is not begun here is handed out again by the server
                case "stop":
                    self._trials.order_stop(slot.station, command.run_id)
                case "exit" if slot.work is None:
                    slot.station.exhausted = True
                    self._stations.dismiss(slot)
        if not slot.ended:
            self._stations.ask(slot, [slot.work.run_id] if slot.work else [])

    def _affords(self, slot: Slot, run_id: str, config: Mapping[str, Any]) -> bool:
        """Whether there is time for a trial; if not, none is begun any more."""
        if self._timekeeper is None:
            return True
        beside = sum(other.work is not None for other in slot.station.slots)
        why = self._timekeeper.refusal(run_id, config, beside + 1)
        if why:
            self.tally.out_of_time = True
            self._display.say(f"run {run_id} is left for later: {why}; no more trials are started")
        return not why

    def _retire_idle(self) -> None:
        """Dismiss the slots that have no trial when none is to be started any more."""
        if self.tally.is_full:
            if not any(isinstance(waiting, Work) for waiting in self._homeless):
                self._homeless.clear()  # the next agent finds the others again
            for slot in self._slots():
                self._serve(slot)

    # Workers that die: another is employed for the same trials, unless the device or one of them is to blame.

    def _bury(self, station: Station, worker: WorkerProcess, status: int) -> None:
        how, words = self._stations.bury(station, worker, status)
        aboard = station.aboard
        for work in aboard:
            work.fail_here()
        if self.tally.is_leaving:
            for slot in station.slots:
                self._put_back_if_idle(slot)
            return
        to_blame = [work for work in aboard if work.suspect] or aboard
        if station.device.visible:
            names = frozenset(work.run_id for work in to_blame)
            self._deaths.append(Death(station.device.name, names, is_hardware(words)))
        others = any(other is not station and not other.ended for other in self._all)
        sick = is_sick(station.device.name, self._deaths, self._culprits, others=others)
        if sick or station.idle_deaths >= IDLE_DEATHS:
            self._retire(station, f"the worker on {station.device.name} ended with {how}:\n{words}", worker)
            return
        self._display.say(f"{station.device.name}: the worker ended with {how}; starting another")
        cause = cause_of_death(words)
        if len(to_blame) == 1 and not is_retried(cause, to_blame[0].failures):
            self._convict(station, to_blame[0], cause, f"the last with {how}; log: {worker.log}")
        for work in aboard:
            work.suspect = len(aboard) > 1 and work.failures >= SUSPICIOUS
        if not station.ended:
            self._stations.employ(station)

    def _convict(self, station: Station, work: Work, cause: str, how: str) -> None:
        """End the trial that no worker survives."""
        slot = station.holder(work.run_id)
        assert slot is not None
        self._culprits.add(work.run_id)
        self._trials.fail(slot, cause, f"{work.failures} workers ended under this trial, {how}")

    def _retire(self, station: Station, why: str, worker: WorkerProcess) -> None:
        """Use a device no more; its trials move to another. Raises KtoSweepError when there is none."""
        station.retired = True
        look = f"nvidia-smi -i {station.device.visible}   (its whole log: {worker.log})"
        hint = look if station.device.visible else f"its whole log: {worker.log}"
        if all(other.retired or other.ended for other in self._all):
            raise KtoSweepError(why, hint=hint)
        self._display.say(f"{station.device.name} is used no more: {why}\n  Look: {hint}")
        for slot in station.slots:
            work = slot.work
            if work is not None and work.run is not None and not work.closing:
                slot.work, work.suspect = None, True
                self._homeless.append(work)
            self._stations.dismiss(slot)
        for slot in self._slots():
            self._serve(slot)

    # The end, near or far.

    def _interrupt(self, number: int) -> None:
        if self.tally.interrupted:
            raise KeyboardInterrupt  # a second signal: the workers are killed on the way out
        self.tally.interrupted = number
        self._display.say("ending the trials after the step they are in; once more to end them now")
        self._put_all_back()

    def _watch_time(self) -> None:
        """Put the trials back when the time is over."""
        if self._timekeeper is not None and self._timekeeper.is_up and not self.tally.is_leaving:
            self.tally.time_is_up = True
            self._display.say("the time is over: ending the trials after the step they are in")
            self._put_all_back()

    def _put_all_back(self) -> None:
        self._deadline = time.monotonic() + self._grace
        self._take_home()
        for slot in self._slots():
            if slot.work is not None and slot.work.ordered:
                self._trials.order_stop(slot.station, slot.work.run_id)
            else:
                self._put_back_if_idle(slot)

    def _put_back_if_idle(self, slot: Slot) -> None:
        """Put back the trial of a slot whose worker does not have it, and dismiss the slot."""
        work = slot.work
        if work is not None and work.run is not None and not work.ordered and not work.closing:
            self._trials.put_back(slot)
        elif work is None:
            self._stations.dismiss(slot)

    def _take_home(self) -> None:
        """Give the open trials that wait for a slot one in which they can be closed."""
        waiting = [work for work in self._homeless if isinstance(work, Work)]
        self._homeless.clear()
        self._all[0].slots += [Slot(self._all[0], work=work, ended=True) for work in waiting]

    def _watch_server(self) -> None:
        """Speak of a server that does not answer; in the end, start nothing more."""
        silence = self._lifeline.silence
        if silence > SILENCE_SECONDS and not self._silent and not self.tally.cut_off:
            self._silent = True
            self._display.say(
                f"no answer from the server for {silence:.0f} s: training goes on, what it logs is sent later"
            )
        elif silence < SILENCE_SECONDS and self._silent:
            self._silent = False
            self._display.say("the server answers again")
        if silence > self._patience and not self.tally.cut_off:
            self.tally.cut_off = True
            self._display.say(f"no answer from the server for {silence:.0f} s: no more trials are started")
            self._retire_idle()
