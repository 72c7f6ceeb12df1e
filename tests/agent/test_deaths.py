"""Workers that are gone, and what becomes of their devices and trials."""

import errno
import io
import queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from rich.console import Console

from kto_sweep.agent import stations as stations_module
from kto_sweep.agent.deaths import Deaths
from kto_sweep.agent.devices import Device
from kto_sweep.agent.display import Display
from kto_sweep.agent.events import Events
from kto_sweep.agent.floor import Floor
from kto_sweep.agent.slots import Station, Work
from kto_sweep.agent.stations import IDLE_DEATHS, PAUSE_SECONDS, Stations
from kto_sweep.errors import KtoSweepError
from kto_sweep.home import Home
from kto_sweep.sweep.ref import SweepRef


class Worker:
    """Stands for a process that never says anything by itself."""

    refused: ClassVar[OSError | None] = None

    def __init__(self, device: Device, home: Home, log: Path, on_message: Any, on_death: Any) -> None:
        if self.refused is not None:
            raise self.refused
        self.log = log
        self.words = ""

    def last_words(self) -> str:
        return self.words

    def end(self, *, at_once: bool = False) -> None:
        raise AssertionError("nobody waits for it")


class Hall:
    """Two GPUs whose workers are ready, a trial on the first."""

    def __init__(self, home: Home) -> None:
        self.now = 0.0
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
            station.ready = station.was_ready = True
        self.first, self.second = self.floor.stations
        self.work = self.first.slots[0].work = Work("run1", {}, ordered=True)

    def die(self, status: int, *, ready: bool = True) -> None:
        """The first worker does."""
        self.first.ready = ready
        self.deaths.bury(self.first, self.first.worker, status)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.stations.employ_due(self.floor.stations)


@pytest.fixture
def hall(tmp_path, monkeypatch):
    monkeypatch.setattr(stations_module, "WorkerProcess", Worker)
    made = Hall(Home(tmp_path))
    monkeypatch.setattr(stations_module, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def test_the_trials_of_a_worker_that_does_not_end_move_to_another_gpu(hall):
    hall.deaths.give_up(hall.first, "it does not end")
    assert hall.first.retired
    assert (hall.first.worker, hall.moved, hall.work.ordered) == (None, [hall.first], False)
    assert "gpu 0 is used no more: it does not end" in hall.said.getvalue()
    with pytest.raises(KtoSweepError, match="nor this"):
        hall.deaths.give_up(hall.second, "nor this")


def test_a_worker_that_cannot_take_anothers_place_is_started_again_after_a_pause(hall):
    hall.die(1)
    assert hall.first.worker is not None
    for _ in range(IDLE_DEATHS - 1):
        hall.work.ordered = False  # nothing is given to a worker that is not ready
        hall.die(1, ready=False)
        assert f"starting another in {PAUSE_SECONDS:.0f} s" in hall.said.getvalue()
        hall.wait(PAUSE_SECONDS - 1)
        assert hall.first.worker is None
        hall.wait(1)
        assert hall.first.worker is not None
    hall.die(1, ready=False)
    assert hall.first.retired


def test_a_device_on_which_no_worker_ever_starts_is_used_no_more_at_once(hall):
    hall.first.was_ready = False
    hall.work.ordered = False
    hall.die(1, ready=False)
    assert hall.first.retired


def test_deaths_before_a_trial_that_ends_well_are_forgotten(hall):
    for run_id in ("a", "b", "c"):
        hall.first.slots[0].work = Work(run_id, {}, ordered=True)
        hall.die(-9)
        assert not hall.first.retired
        hall.deaths.worked(hall.first)
    for run_id, expected in (("d", False), ("e", True)):
        hall.first.slots[0].work = Work(run_id, {}, ordered=True)
        hall.die(-9)
        assert hall.first.retired is expected


def test_a_worker_that_the_box_has_no_room_for_is_started_later(hall, monkeypatch):
    monkeypatch.setattr(Worker, "refused", OSError(errno.ENOSPC, "No space left on device"))
    hall.die(-9)
    for _ in range(3):
        hall.wait(PAUSE_SECONDS)
    (told,) = (line for line in hall.said.getvalue().splitlines() if "No space left" in line)
    assert "no worker can be started" in told
    monkeypatch.setattr(Worker, "refused", None)
    hall.wait(PAUSE_SECONDS)
    assert hall.first.worker is not None
    assert hall.first.employ_at is None


def test_a_death_by_a_signal_without_a_name_is_told_by_its_number(hall):
    hall.die(-40)
    assert "the worker ended with signal 40" in hall.said.getvalue()
