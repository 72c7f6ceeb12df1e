"""Silent workers: when they are reported, and when they are killed."""

import os
import signal
import time
from pathlib import Path

from agent_world import GPU_0, GPU_1, lines, of_kind, play, ready, running, said
from fake_worker import COMMAND

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


class SilentWorker:
    """An agent whose worker is silent, and a clock."""

    def __init__(self, state: AgentState) -> None:
        self.state, _ = play(state, events.Tick())
        self.now = 0.0
        self.actions: list[do.Action] = []

    def advance(self, seconds: float, *, held: bool = False) -> None:
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
    silent = SilentWorker(running("a"))
    silent.step(1)
    silent.advance(WARN_SECONDS - 2)
    assert not lines(silent.actions)
    silent.advance(10)
    assert lines(silent.actions) == ["gpu 0: the worker of a has sent nothing for 10 min; log: gpu 0.log"]
    silent.advance(KILL_SECONDS)
    assert "the worker has hung for" in lines(silent.actions)[1]
    assert silent.killed == [do.KillWorker("gpu 0")]


def test_a_worker_that_prepares_or_was_as_silent_before_is_not_killed() -> None:
    silent = SilentWorker(running("a"))
    silent.state, _ = play(silent.state, said(silent.state, "gpu 0", Preparing("a", "reference", 1, 2)))
    silent.advance(KILL_SECONDS + 10)
    silent.step(1)
    silent.advance(2 * KILL_SECONDS / LONGEST_FACTOR)
    silent.step(2)
    silent.advance(KILL_SECONDS + 10)
    assert not silent.killed
    assert len(lines(silent.actions)) == 2


def test_idle_and_suspended_workers_are_not_killed() -> None:
    idle = SilentWorker(ready())
    idle.advance(KILL_SECONDS + 10)
    assert not lines(idle.actions)
    held = SilentWorker(running("a"))
    held.step(1)
    held.advance(KILL_SECONDS + 10, held=True)
    [line] = lines(held.actions)
    assert "is suspended" in line
    assert not held.killed


def test_a_worker_that_does_not_start_is_reported_and_then_killed() -> None:
    state = running("a")
    state, _ = play(state, events.WorkerExited("gpu 0", 1, -9))
    silent = SilentWorker(state)
    silent.advance(WARN_SECONDS + 10)
    assert "the worker, which is not ready yet, has sent nothing for 10 min" in lines(silent.actions)[0]
    silent.advance(START_SECONDS)
    assert "did not start" in lines(silent.actions)[1]
    assert silent.killed


def test_a_worker_that_cannot_be_killed_quarantines_its_device_and_its_trials_move() -> None:
    silent = SilentWorker(running("a", devices=[GPU_0, GPU_1]))
    silent.step(1)
    silent.advance(KILL_SECONDS + 10)
    assert silent.killed
    silent.advance(EXIT_SECONDS - 12)
    assert not silent.state.devices["gpu 0"].quarantined
    silent.advance(20)
    assert silent.state.devices["gpu 0"].quarantined
    assert (
        "gpu 0 is no longer used: the worker on gpu 0 was killed but does not exit"
        in lines(silent.actions)[2]
    )
    assert {slot.device for slot in silent.state.slots.values() if slot.trial is not None} == {"gpu 1"}


def test_without_another_device_that_ends_the_agent() -> None:
    silent = SilentWorker(running("a"))
    silent.step(1)
    silent.advance(KILL_SECONDS + EXIT_SECONDS + 20)
    assert silent.state.phase in (Phase.ABORTING, Phase.ENDED)


def test_a_new_worker_starts_without_silence() -> None:
    silent = SilentWorker(running("a"))
    silent.step(1)
    silent.advance(KILL_SECONDS - 10)
    silent.state, _ = play(silent.state, events.WorkerExited("gpu 0", 1, -9), now=silent.now)
    silent.advance(20)
    assert not silent.killed


def test_time_in_which_the_agent_was_suspended_does_not_count() -> None:
    silent = SilentWorker(running("a"))
    silent.step(1)
    silent.state, actions = play(silent.state, events.Tick(), now=2 * KILL_SECONDS)
    assert MAX_TICK_SECONDS < WARN_SECONDS
    assert not lines(actions)


def test_a_suspended_process_is_detected_and_can_be_killed(tmp_path: Path) -> None:
    worker = WorkerProcess(CPU, Home(tmp_path), COMMAND)
    pid = worker._process.pid
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while not worker.is_held:
        assert time.monotonic() < deadline
    worker.kill()
    assert worker.listen(lambda message: None) == -signal.SIGKILL
    worker.end()
