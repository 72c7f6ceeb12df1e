"""Signals and deaths that come at an exact moment: while a model is loaded, at the last step, at the end."""

import os
import signal
import time
from pathlib import Path

import pytest
from arena import TWO_BY_TWO, Arena, Losses
from gates import Gates

INTERRUPT, END = signal.SIGINT, signal.SIGTERM


def hit(arena: Arena, gates: Gates, phase: str, what: str) -> None:
    """Have `what` happen in `phase`, to the agent that is there or a new one."""
    gates.close(phase)
    if phase == "load" and arena.alive:  # the next model is loaded by the next worker
        arena.wait(arena.workers, what="a worker")  # the last one may have been killed just now
        os.kill(arena.workers()[0], signal.SIGKILL)
    agent = arena.alive[0] if arena.alive else arena.start_agent()
    gates.wait(arena)
    began = time.monotonic()
    match what:
        case "worker is killed":
            os.kill(arena.workers(agent)[0], signal.SIGKILL)
        case "agent is killed":
            agent.kill()
            agent.wait()
        case "terminal is closed":
            os.killpg(agent.pid, signal.SIGHUP)
        case _:
            number = INTERRUPT if "Ctrl-C" in what else END
            os.killpg(agent.pid, number)
            if "twice" in what:
                time.sleep(0.5)
                os.killpg(agent.pid, number)
            else:
                time.sleep(1)
                gates.open()
            assert agent.wait(60) == 128 + number, f"{phase}, {what}: {arena.said()}"
            assert "twice" not in what or time.monotonic() - began < 10
    gates.open()


def go_through(folder: Path, accidents: list[tuple[str, str]], undisturbed: Losses, **values: object) -> None:
    gates = Gates(folder)
    axes = values.pop("axes", TWO_BY_TWO)
    arena = Arena(folder / "box", axes, gates.environ, ("--trials-per-gpu", "2"))
    try:
        arena.create(**values)
        for phase, what in accidents:
            print(f"after {arena.steps()} steps: {phase}, {what}", flush=True)
            hit(arena, gates, phase, what)
        arena.finish()
        arena.check(undisturbed)
    finally:
        gates.open()
        arena.close()


def test_a_sweep_outlives_what_comes_at_the_worst_moment(tmp_path, undisturbed):
    accidents = [
        ("evaluation", "terminal is closed"),
        ("last step", "SIGTERM"),
        ("writing", "worker is killed"),
        ("closing", "Ctrl-C twice"),
    ]
    go_through(tmp_path, accidents, undisturbed)


PHASES = ("load", "reference", "evaluation", "last step", "saving", "writing", "closing")
ACCIDENTS = (
    *("Ctrl-C", "Ctrl-C twice", "SIGTERM", "SIGTERM twice"),
    *("terminal is closed", "worker is killed", "agent is killed"),
)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("phase", PHASES)
def test_a_sweep_outlives_all_accidents_in_each_phase(tmp_path, phase):
    axes = {"seed": list(range(2 * len(ACCIDENTS)))}
    alone = Arena(tmp_path / "alone", axes, options=("--trials-per-gpu", "8"))
    try:
        alone.create(max_steps=10)
        alone.start_agent()
        alone.finish()
        undisturbed = alone.losses()
    finally:
        alone.close()
    accidents = [(phase, what) for what in ACCIDENTS]
    go_through(tmp_path, accidents, undisturbed, axes=axes, max_steps=10)
