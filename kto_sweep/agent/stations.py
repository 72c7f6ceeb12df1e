"""A station: its worker is employed, its slots register when it is ready, in the end all are dismissed."""

import signal
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kto_sweep.agent.display import Display
from kto_sweep.agent.events import Died, Events, Lost, Said, Told
from kto_sweep.agent.heart import Heart
from kto_sweep.agent.slots import Slot, Station, Work
from kto_sweep.agent.worker_process import WorkerProcess
from kto_sweep.disk import shortage
from kto_sweep.home import Home
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.wandb_client.connection import is_deleted
from kto_sweep.wandb_client.private_api import Command, KeyRejectedError, heartbeat, register_agent

if TYPE_CHECKING:
    import wandb

PAUSE_SECONDS = 30.0
"""Before another worker is started where one could not start: a driver resets its GPU, a disk is full."""
SHORT_SECONDS = 10.0
"""While a trial was found to wait for room so recently, the server is asked for no other."""
IDLE_DEATHS = 3
"""So many deaths of a worker that has no trial mean that it cannot work here."""


class Stations:
    """Employs workers and registers slots."""

    def __init__(self, api: "wandb.Api", ref: SweepRef, home: Home, display: Display, events: Events) -> None:
        self._api = api
        self._ref = ref
        self._home = home
        self._display = display
        self._events = events
        self.refused = False
        """The server does not take the key any more."""
        self._short_of_space: set[str] = set()
        self._without_worker: set[str] = set()
        self._found_short = float("-inf")
        """Monotonic time."""
        self._is_known = False
        """The server has taken one of the slots as an agent."""

    def employ(self, station: Station) -> None:
        """Start a worker, which says when it is ready; where the box does not let us, later."""
        try:
            self._employ(station)
        except OSError as error:  # no room for its log, no memory or no process left
            self.employ_later(station)
            if station.device.name not in self._without_worker:
                self._without_worker.add(station.device.name)
                self._display.say(
                    f"{station.device.name}: no worker can be started ({error}); "
                    f"tried again every {PAUSE_SECONDS:.0f} s"
                )
        else:
            station.employ_at = None
            self._without_worker.discard(station.device.name)

    def employ_later(self, station: Station) -> None:
        """Start a worker after a pause."""
        station.employ_at = time.monotonic() + PAUSE_SECONDS

    def employ_due(self, stations: Sequence[Station]) -> None:
        """Start the workers that were put off until now."""
        for station in stations:
            due = station.employ_at is not None and time.monotonic() >= station.employ_at
            if due and not station.ended:
                self.employ(station)

    def _employ(self, station: Station) -> None:
        log = self._home.root / "workers" / f"{station.device.name.replace(' ', '-')}.log"
        worker = WorkerProcess(
            station.device,
            self._home,
            log,
            on_message=lambda message: self._events.put(Said(station, message)),
            on_death=lambda status: self._events.put(Died(station, worker, status)),
        )
        station.worker, station.ready, station.last_words = worker, False, ""

    def ask(self, slot: Slot, running: Sequence[str], *, soon: bool = False) -> None:
        """Have `slot` call the server, with an agent of its own, and name its run."""
        if slot.heart is not None:
            slot.heart.resume(running, soon=soon)
            return
        host = f"{socket.gethostname()} {slot.station.device.name}"
        slot.heart = Heart(
            register=lambda: self._register(host),
            beat=lambda agent_id, runs: self._beat(slot, agent_id, runs),
            on_commands=lambda commands: self._events.put(Told(slot, commands)),
            on_loss=lambda error: self._events.put(Lost(error)),
            is_lost=self._is_lost,
            on_trouble=self._display.say,
        )
        slot.heart.start(running)

    def _register(self, host: str) -> str:
        agent_id = register_agent(self._api, self._ref, host)
        self._is_known = True
        return agent_id

    def _is_lost(self) -> bool:
        """Whether there is no use in asking again: the sweep is gone, or has taken none of these slots yet.

        A gateway whose W&B is being replaced answers 404 and 403 as well.
        """
        return not self._is_known or is_deleted(self._api, self._ref)

    def _beat(self, slot: Slot, agent_id: str, runs: Sequence[str]) -> list[Command]:
        """What the server wants done; a slot without a trial asks for none that could not be begun now."""
        now = time.monotonic()
        if not runs and (now < slot.not_before or now - self._found_short < SHORT_SECONDS):
            return []
        try:
            commands = heartbeat(self._api, agent_id, runs)
        except KeyRejectedError:
            self.refused = True
            raise
        self.refused = False
        return commands

    def dismiss(self, slot: Slot, *, at_once: bool = False) -> None:
        """End a slot, and with the last one of a station its worker; `at_once`: without a last word."""
        slot.ended = True
        if slot.heart is not None:
            slot.heart.end()
        station = slot.station
        if station.ended and station.worker is not None:
            worker, station.worker = station.worker, None
            worker.end(at_once=at_once or bool(station.aboard) or not station.ready)

    def bury(self, station: Station, worker: WorkerProcess, status: int) -> tuple[str, str]:
        """Take leave of a worker that died; how it did, and what it said last."""
        how = f"signal {_name(-status)}" if status < 0 else f"exit status {status}"
        words = station.last_words or worker.last_words()
        station.worker = None
        # One that ended by itself before it was ready would do so again, unless that went well before.
        hopeless = not station.was_ready and status >= 0
        station.idle_deaths = 0 if station.aboard else IDLE_DEATHS if hopeless else station.idle_deaths + 1
        station.ready = False
        return how, words

    def may_start(self, station: Station, work: Work) -> bool:
        """Whether the worker can be given the trial now."""
        if time.monotonic() < work.not_before:
            return False
        if any(other.suspect for other in station.aboard):
            return False
        return self._has_space(work)

    def _has_space(self, work: Work) -> bool:
        why = shortage(self._home.runs / work.run_id)
        if not why:
            self._short_of_space.discard(work.run_id)
            return True
        self._found_short = time.monotonic()
        if work.run_id not in self._short_of_space:
            self._short_of_space.add(work.run_id)
            self._display.say(f"run {work.run_id} waits for room: the disk of {self._home.root} {why}")
        return False


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals
        return str(number)
        return False
