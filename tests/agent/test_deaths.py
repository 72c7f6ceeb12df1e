"""Workers that are gone, and what becomes of their devices and trials."""

import io
import queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from kto_sweep.agent import stations as stations_module
from kto_sweep.agent.deaths import Deaths
from kto_sweep.agent.devices import Device
from kto_sweep.agent.display import Display
from kto_sweep.agent.events import Events
from kto_sweep.agent.floor import Floor
from kto_sweep.agent.slots import Station, Work
from kto_sweep.agent.stations import Stations
from kto_sweep.errors import KtoSweepError
from kto_sweep.home import Home
from kto_sweep.sweep.ref import SweepRef


class Worker:
    """Stands for a process that never says anything by itself."""

    def __init__(self, device: Device, home: Home, log: Path, on_message: Any, on_death: Any) -> None:
        self.log = log
        self.words = ""

    def last_words(self) -> str:
        return self.words

    def end(self, *, at_once: bool = False) -> None:
        raise AssertionError("nobody waits for it")


class Hall:
    """Two GPUs whose workers are ready, a trial on the first."""

    def __init__(self, home: Home) -> None:
        self.said = io.StringIO()
        self.moved: list[Station] = []
        display = Display(Console(file=self.said, width=300), (), "eval/common_loss", None)
        events: Events = queue.SimpleQueue()
        self.floor = Floor([Device(f"gpu {at}", str(at), f"GPU-{at}") for at in range(2)], 1, ())
        self.stations = Stations(SimpleNamespace(), SweepRef("e", "p", "s"), home, display, events)
        places: Any = SimpleNamespace(rehouse=self.moved.append)
        trials: Any = SimpleNamespace()
        self.deaths = Deaths(self.floor, self.stations, trials, places, display)
        for station in self.floor.stations:
            self.stations.employ(station)
            station.ready = True
        self.first, self.second = self.floor.stations
        self.work = self.first.slots[0].work = Work("run1", {}, ordered=True)


@pytest.fixture
def hall(tmp_path, monkeypatch):
    monkeypatch.setattr(stations_module, "WorkerProcess", Worker)
    return Hall(Home(tmp_path))


def test_the_trials_of_a_worker_that_does_not_end_move_to_another_gpu(hall):
    hall.deaths.give_up(hall.first, "it does not end")
    assert hall.first.retired
    assert (hall.first.worker, hall.moved, hall.work.ordered) == (None, [hall.first], False)
    assert "gpu 0 is used no more: it does not end" in hall.said.getvalue()
    with pytest.raises(KtoSweepError, match="nor this"):
        hall.deaths.give_up(hall.second, "nor this")
