"""A sweep goes through accidents at random moments and ends as if nothing had happened."""

import subprocess
import sys
import time
from collections import Counter

import pytest
from accidents import DISK, SERVER, SUPERVISOR, WORKER, Accident
from arena import TWO_BY_TWO, Arena, Losses, seeded


def by_name(*names: str) -> list[Accident]:
    found = {accident.name: accident for accident in (*WORKER, *SUPERVISOR, *SERVER, *DISK)}
    return [found[name] for name in names]


def go_through(arena: Arena, accidents: list[Accident], undisturbed: Losses) -> None:
    rng = seeded()
    try:
        arena.create()
        arena.start_agent()
        for accident in accidents:
            arena.wait_for_progress(rng.randint(2, 16))
            print(f"after {arena.steps()} steps: {accident.name}", flush=True)
            accident.happen(arena, rng)
        arena.finish()
        arena.check(undisturbed)
    finally:
        arena.close()


@pytest.mark.timeout(900)
def test_a_sweep_outlives_what_happens_most(tmp_path, undisturbed):
    arena = Arena(tmp_path, TWO_BY_TWO, options=("--trials-per-gpu", "2"))
    names = ("worker gets SIGKILL", "server is killed", "agent is killed", "power is cut")
    go_through(arena, by_name(*names), undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("accidents", [WORKER, SUPERVISOR, SERVER, DISK], ids=lambda them: them[0].part)
def test_a_sweep_outlives_all_accidents_of_a_part(tmp_path, undisturbed, accidents):
    arena = Arena(tmp_path, TWO_BY_TWO, options=("--trials-per-gpu", "2"))
    go_through(arena, accidents, undisturbed)


def test_an_agent_starts_again_when_wandbs_service_is_killed_and_keeps_its_count(tmp_path, undisturbed):
    arena = Arena(tmp_path, TWO_BY_TWO, options=("--trials-per-gpu", "3"))
    (kill_service,) = by_name("wandb's service is killed")
    try:
        arena.create()
        agent = arena.start_agent("--count", "3")
        arena.wait_for_progress(9)
        kill_service.happen(arena, seeded())
        assert agent.wait(150) == 0, arena.said()
        assert "restarting" in arena.said()
        assert Counter(run.state for run in arena.runs()) == {"finished": 3}, arena.said()
        arena.command("pause", arena.sweep[2])
        arena.start_agent()
        arena.wait(lambda: arena.said().count("cpu: ready") == 3, what="an agent that waits")
        time.sleep(5)  # younger ones do not start again
        kill_service.happen(arena, seeded())
        arena.wait(lambda: arena.said().count("restarting") == 2, 30, "its new start")
        arena.command("resume", arena.sweep[2])
        arena.finish()
        arena.check(undisturbed)
        assert len(arena.agents) == 2
    finally:
        arena.close()


DEFECT = """
import kto_sweep.agent.supervisor as supervisor
from kto_sweep.agent.display import Display
from kto_sweep.cli import main

def progress(self, run_id, step, values):
    if step >= 12:
        raise ValueError("a defect")

Display.progress = progress
supervisor.LAST_SECONDS = 0.0
main()
"""


def test_trials_that_an_agent_leaves_open_because_of_a_defect_are_not_done(tmp_path, undisturbed):
    arena = Arena(tmp_path, TWO_BY_TWO, options=("--trials-per-gpu", "4"))
    try:
        arena.create()
        ended = subprocess.run(
            [sys.executable, "-c", DEFECT, "agent", arena.sweep[2], *arena.options],
            cwd=arena.folder, env=arena.environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 1, ended.stdout
        assert "a defect" in ended.stderr
        assert {run.state for run in arena.runs()} <= {"running", "preempting", "preempted"}, ended.stdout
        arena.finish()
        arena.check(undisturbed)
    finally:
        arena.close()


HANGING = """
import os, sys, time

if any("kto_sweep.train.worker" in word for word in sys.orig_argv):
    from kto_sweep.train.course import Course

    write = Course.write

    def write_or_hang(self, step, values, engine):
        if step == 12 and not os.path.exists(os.environ["HUNG"]):
            open(os.environ["HUNG"], "w").close()
            time.sleep(100_000)
        write(self, step, values, engine)

    Course.write = write_or_hang
else:
    import kto_sweep.agent.stillness as stillness

    stillness.SPOKEN_SECONDS, stillness.KILLED_SECONDS, stillness.TIMES = 15.0, 30.0, 3.0
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_that_hangs_in_a_step_is_ended_and_another_goes_on(tmp_path, undisturbed):
    environ = {"HUNG": str(tmp_path / "hung")}
    arena = Arena(tmp_path / "box", TWO_BY_TWO, environ, ("--trials-per-gpu", "2"))
    arena.patch(HANGING)
    try:
        arena.create()
        arena.start_agent()
        arena.finish()
        assert "has said nothing for" in arena.said()
        assert "the worker hangs" in arena.said()
        arena.check(undisturbed)
    finally:
        arena.close()
