"""Faults at random moments change nothing in a sweep's result."""

import time
from collections import Counter

import forked_python
import pytest
from fake_worker import CLI
from faults import DISK, SERVER, SUPERVISOR, WORKER, Fault
from machine import KTO_SWEEP
from sweep_harness import TWO_BY_TWO, Losses, SweepHarness, fake_losses, seeded_random


def faults_named(*names: str) -> list[Fault]:
    faults = {fault.name: fault for fault in (*WORKER, *SUPERVISOR, *SERVER, *DISK)}
    return [faults[name] for name in names]


def run_with_faults(harness: SweepHarness, faults: list[Fault], baseline: Losses) -> None:
    rng = seeded_random()
    try:
        harness.create()
        harness.start_agent()
        for fault in faults:
            harness.wait_for_progress(rng.randint(2, 16))
            print(f"after {harness.steps()} steps: {fault.name}", flush=True)
            fault.inject(harness, rng)
        harness.finish()
        harness.check(baseline)
    finally:
        harness.close()


@pytest.mark.timeout(900)
@pytest.mark.slow  # test_breakpoints.py has the same at chosen moments
def test_a_sweep_survives_the_most_frequent_faults(tmp_path, baseline):
    harness = SweepHarness(tmp_path, TWO_BY_TWO, cli=forked_python.CLI, options=("--trials-per-gpu", "2"))
    names = ("worker gets SIGKILL", "server is killed", "agent is killed", "power is cut")
    run_with_faults(harness, faults_named(*names), baseline)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("faults", [WORKER, SUPERVISOR, SERVER, DISK], ids=lambda faults: faults[0].part)
def test_a_sweep_survives_all_faults_of_a_part(tmp_path, baseline, faults):
    harness = SweepHarness(tmp_path, TWO_BY_TWO, cli=KTO_SWEEP, options=("--trials-per-gpu", "2"))
    run_with_faults(harness, faults, baseline)


RESTARTING = f"import kto_sweep.cli.agent as agent; agent.MIN_UPTIME = 1.0; {CLI[1]}"


@pytest.mark.slow  # seldom
def test_an_agent_starts_again_when_wandbs_service_is_killed_and_keeps_its_count(tmp_path):
    harness = SweepHarness(tmp_path, TWO_BY_TWO, cli=("-c", RESTARTING), options=("--trials-per-gpu", "3"))
    (kill_service,) = faults_named("wandb's service is killed")
    try:
        harness.create()
        agent = harness.start_agent("--count", "3")
        harness.wait_for_progress(9)
        kill_service.inject(harness, seeded_random())
        assert agent.wait(150) == 0, harness.output()
        assert "; restarting" in harness.output()
        assert Counter(run.state for run in harness.runs()) == {"finished": 3}, harness.output()
        harness.run("pause", harness.sweep[2])
        harness.start_agent()
        harness.wait(lambda: harness.output().count("cpu: ready") == 3, what="an agent that waits")
        time.sleep(1)  # an agent that is younger than MIN_UPTIME does not restart
        kill_service.inject(harness, seeded_random())
        harness.wait(lambda: harness.output().count("; restarting") == 2, 30, "its new start")
        harness.run("resume", harness.sweep[2])
        harness.finish()
        harness.check(fake_losses(TWO_BY_TWO))
        assert len(harness.agents) == 2
    finally:
        harness.close()


DEFECT = f"""
import kto_sweep.agent.shutdown as shutdown
from kto_sweep.agent.progress import ProgressDisplay

def progress(self, run_id, step, values):
    if step >= 12:
        raise ValueError("a defect")

ProgressDisplay.progress = progress
shutdown.ABORT_SECONDS = 0.0
{CLI[1]}
"""


@pytest.mark.slow  # seldom
def test_trials_that_an_agent_leaves_open_because_of_a_defect_are_not_done(tmp_path):
    harness = SweepHarness(tmp_path, TWO_BY_TWO, options=("--trials-per-gpu", "4"))
    try:
        harness.create()
        output = harness.python("-c", DEFECT, "agent", harness.sweep[2], *harness.options, code=1)
        assert "a defect" in output
        assert {run.state for run in harness.runs()} <= {"running", "preempting", "preempted"}, output
        harness.finish()
        harness.check(fake_losses(TWO_BY_TWO))
    finally:
        harness.close()


HANGING = """
import os, sys, time

if "kto_sweep.train.worker" in sys.orig_argv:
    from kto_sweep.train.trial.training import TrialTraining

    log = TrialTraining.log

    def log_or_hang(self, step, values, engine):
        if step == 12 and not os.path.exists(os.environ["HUNG"]):
            open(os.environ["HUNG"], "w").close()
            time.sleep(100_000)
        log(self, step, values, engine)

    TrialTraining.log = log_or_hang
else:
    import kto_sweep.agent.watchdog as watchdog

    watchdog.WARN_SECONDS, watchdog.KILL_SECONDS, watchdog.LONGEST_FACTOR = 15.0, 30.0, 3.0
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_that_hangs_in_a_step_is_ended_and_another_goes_on(tmp_path, baseline):
    environ = {"HUNG": str(tmp_path / "hung")}
    harness = SweepHarness(
        tmp_path / "machine",
        TWO_BY_TWO,
        cli=KTO_SWEEP,
        environ=environ,
        options=("--trials-per-gpu", "2"),
    )
    harness.patch(HANGING)
    try:
        harness.create()
        harness.start_agent()
        harness.finish()
        assert "has sent nothing for" in harness.output()
        assert "the worker has hung for" in harness.output()
        harness.check(baseline)
    finally:
        harness.close()
