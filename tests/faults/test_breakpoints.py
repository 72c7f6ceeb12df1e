"""Signals and kills at an exact moment: while a model loads, at the last step, while files are written."""

import os
import signal
import time
from pathlib import Path

import forked_python
import pytest
from breakpoints import Breakpoints
from sweep_harness import TWO_BY_TWO, Losses, SweepHarness

INTERRUPT, TERMINATE = signal.SIGINT, signal.SIGTERM


def inject(harness: SweepHarness, breakpoints: Breakpoints, phase: str, fault: str) -> None:
    """Inject a fault into `phase` of the running agent, or of a new one."""
    breakpoints.hold(phase)
    if phase == "load" and harness.running_agents:  # a new worker loads the next model
        harness.wait(harness.workers, what="a worker")  # the previous fault may have killed the last one
        os.kill(harness.workers()[0], signal.SIGKILL)
    agent = harness.running_agents[0] if harness.running_agents else harness.start_agent()
    breakpoints.wait(harness)
    began = time.monotonic()
    match fault:
        case "worker is killed":
            os.kill(harness.workers(agent)[0], signal.SIGKILL)
        case "agent is killed":
            agent.kill()
            agent.wait()
        case "terminal is closed":
            os.killpg(agent.pid, signal.SIGHUP)
        case _:
            number = INTERRUPT if "Ctrl-C" in fault else TERMINATE
            os.killpg(agent.pid, number)
            if "twice" in fault:
                time.sleep(0.5)
                os.killpg(agent.pid, number)
            else:
                time.sleep(1)
                breakpoints.release()
            assert agent.wait(60) == 128 + number, f"{phase}, {fault}: {harness.output()}"
            assert "twice" not in fault or time.monotonic() - began < 10
    breakpoints.release()


def run_with_faults(folder: Path, faults: list[tuple[str, str]], baseline: Losses, **values: object) -> None:
    breakpoints = Breakpoints(folder)
    axes = values.pop("axes", TWO_BY_TWO)
    harness = SweepHarness(
        folder / "machine",
        axes,
        cli=forked_python.CLI,
        environ=breakpoints.environ,
        options=("--trials-per-gpu", "2"),
    )
    try:
        harness.create(**values)
        for phase, fault in faults:
            print(f"after {harness.steps()} steps: {phase}, {fault}", flush=True)
            inject(harness, breakpoints, phase, fault)
        harness.finish()
        harness.check(baseline)
    finally:
        breakpoints.release()
        harness.close()


def test_a_sweep_survives_faults_at_the_worst_moment(tmp_path, baseline):
    faults = [
        ("evaluation", "terminal is closed"),
        ("last step", "SIGTERM"),
        ("writing", "worker is killed"),
        ("closing", "Ctrl-C twice"),
    ]
    run_with_faults(tmp_path, faults, baseline)


PHASES = ("load", "reference", "evaluation", "last step", "saving", "writing", "closing")
FAULTS = (
    *("Ctrl-C", "Ctrl-C twice", "SIGTERM", "SIGTERM twice"),
    *("terminal is closed", "worker is killed", "agent is killed"),
)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("base_model")
@pytest.mark.parametrize("phase", PHASES)
def test_a_sweep_survives_all_faults_in_each_phase(tmp_path, phase):
    axes = {"seed": list(range(2 * len(FAULTS)))}
    alone = SweepHarness(tmp_path / "alone", axes, cli=forked_python.CLI, options=("--trials-per-gpu", "8"))
    try:
        alone.create(max_steps=10)
        alone.start_agent()
        alone.finish()
        baseline = alone.losses()
    finally:
        alone.close()
    faults = [(phase, fault) for fault in FAULTS]
    run_with_faults(tmp_path, faults, baseline, axes=axes, max_steps=10)
