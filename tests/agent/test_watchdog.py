"""Workers that are silent: when that is reported, and when they are killed."""

import os
import signal
import time
from pathlib import Path

from agent_world import GPU_0, GPU_1, lines, of_kind, play, ready, running, said

from kto_sweep.agent import actions as do
from kto_sweep.agent import events
from kto_sweep.agent.devices import CPU
from kto_sweep.agent.scheduler import MAX_TICK_SECONDS
from kto_sweep.agent.state import AgentState, Phase
from kto_sweep.agent.watchdog import (
    EXIT_SECONDS,
    KILL_SECONDS,
    LONGEST_FACTOR,
    START_SECONDS,
    WARN_SECONDS,
)
from kto_sweep.agent.workers import WorkerProcess
from kto_sweep.home import Home
from kto_sweep.protocol import Metrics, Preparing


class Night:
    """An agent whose worker is silent, and a clock."""

    def __init__(self, state: AgentState) -> None:
        self.state, _ = play(state, events.Tick())
        self.now = 0.0
        self.actions: list[do.Action] = []

    def pass_by(self, seconds: float, *, held: bool = False) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 4.0, end)
            tick = events.Tick(held_workers=frozenset({"gpu 0"} if held else ()))
            self.state, actions = play(self.state, tick, now=self.now)
            self.actions += actions

    def step(self, number: int) -> None:
        message = said(self.state, "gpu 0", Metrics("a", number, {}))
        self.state, _ = play(self.state, message, now=self.now)

    @property
    def killed(self) -> list[do.KillWorker]:
        return of_kind(self.actions, do.KillWorker)


def test_a_worker_that_hangs_in_a_step_is_reported_and_then_killed() -> None:
    night = Night(running("a"))
    night.step(1)
    night.pass_by(WARN_SECONDS - 2)
    assert not lines(night.actions)
    night.pass_by(10)
    assert lines(night.actions) == ["gpu 0: the worker of a has sent nothing for 10 min; its log: gpu 0.log"]
    night.pass_by(KILL_SECONDS)
    assert "the worker has hung for" in lines(night.actions)[1]
    assert night.killed == [do.KillWorker("gpu 0")]


def test_a_worker_that_prepares_something_or_was_as_silent_before_may_take_its_time() -> None:
    night = Night(running("a"))
    night.state, _ = play(night.state, said(night.state, "gpu 0", Preparing("a", "reference", 1, 2)))
    night.pass_by(KILL_SECONDS + 10)
    night.step(1)
    night.pass_by(2 * KILL_SECONDS / LONGEST_FACTOR)
    night.step(2)
    night.pass_by(KILL_SECONDS + 10)
    assert not night.killed
    assert len(lines(night.actions)) == 2


def test_a_worker_without_trials_and_one_that_was_stopped_by_a_person_are_left_alone() -> None:
    idle = Night(ready())
    idle.pass_by(KILL_SECONDS + 10)
    assert not lines(idle.actions)
    held = Night(running("a"))
    held.step(1)
    held.pass_by(KILL_SECONDS + 10, held=True)
    [line] = lines(held.actions)
    assert "was stopped by a signal" in line
    assert not held.killed


def test_a_worker_that_does_not_get_ready_is_reported_and_then_killed() -> None:
    state = running("a")
    state, _ = play(state, events.WorkerExited("gpu 0", 1, -9))
    night = Night(state)
    night.pass_by(WARN_SECONDS + 10)
    assert "the worker, which is not ready yet, has sent nothing for 10 min" in lines(night.actions)[0]
    night.pass_by(START_SECONDS)
    assert "does not get ready" in lines(night.actions)[1]
    assert night.killed


def test_a_worker_that_cannot_be_killed_costs_its_device_and_its_trials_move() -> None:
    night = Night(running("a", devices=[GPU_0, GPU_1]))
    night.step(1)
    night.pass_by(KILL_SECONDS + 10)
    assert night.killed
    night.pass_by(EXIT_SECONDS - 12)
    assert not night.state.devices["gpu 0"].quarantined
    night.pass_by(20)
    assert night.state.devices["gpu 0"].quarantined
    assert (
        "gpu 0 is no longer used: the worker on gpu 0 does not end, although it was killed"
        in lines(night.actions)[2]
    )
    assert {slot.device for slot in night.state.slots.values() if slot.trial is not None} == {"gpu 1"}


def test_without_another_device_that_ends_the_agent() -> None:
    night = Night(running("a"))
    night.step(1)
    night.pass_by(KILL_SECONDS + EXIT_SECONDS + 20)
    assert night.state.phase in (Phase.ABORTING, Phase.ENDED)


def test_a_new_worker_is_not_taken_for_the_one_before() -> None:
    night = Night(running("a"))
    night.step(1)
    night.pass_by(KILL_SECONDS - 10)
    night.state, _ = play(night.state, events.WorkerExited("gpu 0", 1, -9), now=night.now)
    night.pass_by(20)
    assert not night.killed


def test_time_in_which_the_agent_itself_stood_still_does_not_count() -> None:
    night = Night(running("a"))
    night.step(1)
    night.state, actions = play(night.state, events.Tick(), now=2 * KILL_SECONDS)
    assert MAX_TICK_SECONDS < WARN_SECONDS
    assert not lines(actions)


def test_a_process_that_was_stopped_by_a_signal_is_known_and_can_be_killed(tmp_path: Path) -> None:
    worker = WorkerProcess(CPU, Home(tmp_path))
    pid = worker._process.pid
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while not worker.is_held:
        assert time.monotonic() < deadline
    worker.kill()
    assert worker.listen(lambda message: None) == -signal.SIGKILL
    worker.end()
