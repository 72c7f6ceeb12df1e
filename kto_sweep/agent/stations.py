"""A station: its worker is employed, its slots register when it is ready, in the end all are dismissed."""

import signal
import socket
from typing import TYPE_CHECKING

from kto_sweep.agent.display import Display
from kto_sweep.agent.events import Died, Events, Lost, Said, Told
from kto_sweep.agent.heart import Heart
from kto_sweep.agent.link import heartbeat, register_agent
from kto_sweep.agent.slots import Slot, Station
from kto_sweep.agent.worker_process import WorkerProcess
from kto_sweep.errors import KtoSweepError
from kto_sweep.home import Home
from kto_sweep.sweep_ref import SweepRef

if TYPE_CHECKING:
    import wandb

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

    def employ(self, station: Station) -> None:
        """Start a worker; it says when it is ready."""
        log = self._home.root / "workers" / f"{station.device.name.replace(' ', '-')}.log"
        worker = WorkerProcess(
            station.device,
            self._home,
            log,
            on_message=lambda message: self._events.put(Said(station, message)),
            on_death=lambda status: self._events.put(Died(station, worker, status)),
        )
        station.worker, station.ready = worker, False

    def register(self, slot: Slot) -> None:
        """Have `slot` ask the server for trials, with an agent of its own."""
        agent_id = register_agent(self._api, self._ref, f"{socket.gethostname()} {slot.station.device.name}")
        slot.heart = Heart(
            beat=lambda running: heartbeat(self._api, agent_id, running),
            on_commands=lambda commands: self._events.put(Told(slot, commands)),
            on_loss=lambda error: self._events.put(Lost(error)),
        )
        slot.heart.start()

    def dismiss(self, slot: Slot) -> None:
        """End a slot, and with the last one of a station its worker."""
        slot.ended = True
        if slot.heart is not None:
            slot.heart.end()
        station = slot.station
        if station.ended and station.worker is not None:
            worker, station.worker = station.worker, None
            worker.end(at_once=any(other.work for other in station.slots))

    def bury(self, station: Station, worker: WorkerProcess, status: int) -> str:
        """Take leave of a worker that died; how it did.

        Raises KtoSweepError when workers cannot work here.
        """
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        station.worker = None
        working = any(slot.work for slot in station.slots)
        station.idle_deaths = 0 if working else station.idle_deaths + 1
        if not station.ready or station.idle_deaths >= IDLE_DEATHS:
            raise KtoSweepError(
                f"the worker on {station.device.name} ended with {how}:\n{worker.last_words()}",
                hint=f"its whole log: {worker.log}",
            )
        self._display.say(f"{station.device.name}: the worker ended with {how}; starting another")
        return how
