"""Workers that say nothing: when they are spoken of, and when they are taken for dead."""

import io
import os
import signal
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from kto_sweep.agent.devices import CPU
from kto_sweep.agent.display import Display
from kto_sweep.agent.floor import Floor
from kto_sweep.agent.looks import MOST_AT_ONCE
from kto_sweep.agent.slots import Work
from kto_sweep.agent.stillness import (
    DEATH_SECONDS,
    KILLED_SECONDS,
    SPOKEN_SECONDS,
    TIMES,
    UNREADY_SECONDS,
    Stillness,
)
from kto_sweep.agent.worker_process import WorkerProcess
from kto_sweep.home import Home
from kto_sweep.protocol import Metrics, Preparing


class Night:
    """A floor with one worker, which counts as ready and never says anything by itself, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.deaths: list[int] = []
        self.given_up: list[str] = []
        self.now = 0.0
        self.said = io.StringIO()
        display = Display(Console(file=self.said, width=300), (), "eval/common_loss", None)
        self.floor = Floor([CPU], 1, ())
        (self.station,) = self.floor.stations
        self.worker = WorkerProcess(
            CPU, Home(folder / "home"), folder / "log", lambda message: None, self.deaths.append
        )
        self.station.worker, self.station.ready = self.worker, True
        self.station.slots[0].work = Work("run1", {}, ordered=True)
        self.stillness = Stillness(
            self.floor, display, lambda station, why: self.given_up.append(why), lambda: self.now
        )

    @property
    def pid(self) -> int:
        return self.worker._process.pid

    def pass_by(self, seconds: float) -> None:
        while seconds > 0:
            self.now += min(seconds, 1.0)
            seconds -= 1.0
            self.stillness.watch()

    def step(self, step: int) -> None:
        self.stillness.heard(self.station, Metrics("run1", step, {}))

    def lines(self) -> list[str]:
        return self.said.getvalue().splitlines()


@pytest.fixture
def night(tmp_path):
    made = Night(tmp_path)
    yield made
    made.worker.end(at_once=True)


def test_a_worker_that_hangs_in_a_step_is_spoken_of_and_then_ended(night):
    night.step(1)
    night.pass_by(SPOKEN_SECONDS - 2)
    assert not night.lines()
    night.pass_by(10)
    (said,) = night.lines()
    assert "the worker of run1 has said nothing for 10 min" in said
    night.pass_by(KILLED_SECONDS)
    assert "hangs" in night.lines()[-1]
    assert night.worker._process.wait(30) == -signal.SIGKILL


def test_a_worker_that_prepares_something_or_was_still_before_may_take_its_time(night):
    night.stillness.heard(night.station, Preparing("run1", "reference", 1, 2))
    night.pass_by(KILLED_SECONDS + 10)
    night.step(1)
    night.pass_by(2 * KILLED_SECONDS / TIMES)
    night.step(2)
    night.pass_by(KILLED_SECONDS + 10)
    assert night.worker._process.poll() is None
    assert len(night.lines()) == 2


def test_a_worker_without_trials_and_one_that_was_stopped_by_a_person_are_left_alone(night):
    night.step(1)
    work, night.station.slots[0].work = night.station.slots[0].work, None
    night.pass_by(KILLED_SECONDS + 10)
    assert not night.lines()
    night.station.slots[0].work = work
    os.kill(night.pid, signal.SIGSTOP)
    while not night.worker.is_held:
        pass
    night.pass_by(KILLED_SECONDS + 10)
    (said,) = night.lines()
    assert "stopped by a signal" in said
    assert night.worker._process.poll() is None


def test_a_worker_that_never_gets_ready_is_spoken_of_and_then_ended(night):
    night.station.ready, night.station.slots[0].work = False, None
    night.pass_by(SPOKEN_SECONDS + 10)
    (said,) = night.lines()
    assert "the worker, which is not ready yet, has said nothing for 10 min" in said
    night.pass_by(UNREADY_SECONDS)
    assert "does not get ready" in night.lines()[1]
    assert night.worker._process.wait(30) == -signal.SIGKILL


def test_a_worker_that_cannot_be_killed_is_given_up_and_not_waited_for(night, monkeypatch):
    def wait(timeout=None):
        assert timeout is not None, "it would never come back"
        raise subprocess.TimeoutExpired("worker", timeout)

    night.step(1)
    with monkeypatch.context() as held:
        held.setattr(night.worker._process, "kill", lambda: None)
        held.setattr(night.worker._process, "wait", wait)
        night.pass_by(KILLED_SECONDS + 1)
        night.station.slots[0].work = None
        night.pass_by(DEATH_SECONDS - 2)
        assert not night.given_up
        night.pass_by(3)
        assert "does not end, though it was killed" in night.given_up[0]
        night.worker.end()


def test_a_new_worker_is_not_taken_for_the_one_before(night, tmp_path):
    night.step(1)
    night.pass_by(KILLED_SECONDS - 10)
    second = WorkerProcess(CPU, Home(tmp_path), tmp_path / "log", lambda message: None, night.deaths.append)
    night.station.worker = second
    try:
        night.pass_by(20)
        assert second._process.poll() is None
    finally:
        second.end(at_once=True)


def test_time_in_which_the_agent_itself_stood_still_does_not_count(night):
    night.step(1)
    night.now += KILLED_SECONDS * 2
    night.stillness.watch()
    assert MOST_AT_ONCE < SPOKEN_SECONDS
    assert not night.lines()
