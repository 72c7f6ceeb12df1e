"""An agent that leaves while trials run: they are put back with their checkpoints, as far as time allows."""

import time
from collections.abc import Callable

from kto_sweep.agent.events import Closed, Died, Event, Opened, Said, Signalled
from kto_sweep.agent.floor import Floor
from kto_sweep.agent.slots import Slot
from kto_sweep.agent.stations import Stations
from kto_sweep.agent.trials import Trials
from kto_sweep.protocol import Done, Failed


class Departure:
    """Puts the trials of a floor back."""

    def __init__(self, floor: Floor, stations: Stations, trials: Trials, grace: float) -> None:
        """`grace`: seconds from the announcement on."""
        self._floor = floor
        self._stations = stations
        self._trials = trials
        self._grace = grace
        self._deadline = float("inf")

    @property
    def is_overdue(self) -> bool:
        """The grace time is over."""
        return time.monotonic() > self._deadline

    def announce(self) -> None:
        """Have every trial end after the step it is in."""
        self._deadline = time.monotonic() + self._grace
        self._floor.take_home()
        for slot in self._floor.slots:
            if slot.work is not None and slot.work.ordered:
                self._trials.order_stop(slot.station, slot.work.run_id)
            else:
                self.clear(slot)

    def clear(self, slot: Slot) -> None:
        """Put back the trial of a slot whose worker does not have it, and dismiss the slot."""
        work = slot.work
        if work is not None and work.run is not None and not work.ordered and not work.closing:
            self._trials.put_back(slot)
        elif work is None or self._trials.drop_unopened(slot):
            self._stations.dismiss(slot)

    def wait_for_workers(self, next_event: Callable[[], Event | None]) -> None:
        """Let the workers put their trials away, of which nothing can be told to the server any more.

        Until the grace time is over or another signal comes.
        """
        while any(station.aboard for station in self._floor.stations) and not self.is_overdue:
            event = next_event()
            if isinstance(event, Signalled):
                return
            self.hear_last(event)

    def hear_last(self, event: Event | None) -> None:
        """Take in which trials the workers have no more."""
        match event:
            case Said(station, Done() | Failed() as message):
                holder = station.holder(message.run_id)
                if holder is not None and holder.work is not None:
                    holder.work.ordered = False
            case Died(station):
                for work in station.aboard:
                    work.ordered = False

    def leave(self, seconds: float, next_event: Callable[[], Event | None]) -> None:
        """End the workers now; trials are put back as far as that can be done in this time."""
        deadline = time.monotonic() + seconds
        self._floor.take_home()
        for slot in self._floor.slots:
            self._stations.dismiss(slot, at_once=not seconds)
            self._trials.drop_unopened(slot)
            if seconds and slot.work is not None and slot.work.run is not None and not slot.work.closing:
                self._trials.put_back(slot)
        while any(slot.work for slot in self._floor.slots) and time.monotonic() < deadline:
            match next_event():
                case Closed() as event:
                    self._trials.closed(event)
                case Opened(slot) as event:
                    self._trials.opened(event)
                    if slot.work is not None and not self._trials.drop_unopened(slot):
                        self._trials.put_back(slot)
