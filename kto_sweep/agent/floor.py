"""All places of a box for trials, and the trials that have none."""

from collections import deque
from collections.abc import Sequence

from kto_sweep.agent.devices import Device
from kto_sweep.agent.presence import Orphan
from kto_sweep.agent.slots import Slot, Station, Work


class Floor:
    """The stations of one agent and those who wait at its door."""

    def __init__(self, devices: Sequence[Device], slots: int, orphans: Sequence[Orphan]) -> None:
        """A station with so many `slots` for each device."""
        self.stations = [Station(device) for device in devices]
        for station in self.stations:
            station.slots = [Slot(station) for _ in range(slots)]
        self.homeless: deque[Orphan | Work] = deque(orphans)
        """Trials that come before new ones: those of dead agents and of GPUs that are used no more."""

    @property
    def slots(self) -> list[Slot]:
        """Of all stations."""
        return [slot for station in self.stations for slot in station.slots]

    @property
    def is_empty(self) -> bool:
        """Nothing is left to do."""
        return all(slot.ended and slot.work is None for slot in self.slots)

    def take_home(self) -> None:
        """Give the open trials that wait for a slot one in which they can be closed."""
        waiting = [work for work in self.homeless if isinstance(work, Work)]
        self.homeless.clear()
        first = self.stations[0]
        first.slots += [Slot(first, work=work, ended=True) for work in waiting]
