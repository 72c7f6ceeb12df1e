"""An agent as a user starts and controls it, with the real server and SDK; its workers need no torch."""

import json
import os
import signal
import subprocess
from typing import Any

from agent_harness import wait
from fake_worker import COMMAND
from machine import Machine
from short_sweep import SWEEP

from kto_sweep.run_record import read_record

STEPS = 100
LONG_AND_SHORT = f"""
method: grid
parameters:
  max_steps: {{values: [3, {STEPS}]}}
  model_size: {{value: tiny}}
  dataset: {{value: examples/support_replies.jsonl}}
"""


def start_long_trial(machine: Machine) -> tuple[dict[str, Any], "subprocess.Popen[str]"]:
    """A sweep, and its agent that has begun the long trial."""
    made = machine.create_sweep(LONG_AND_SHORT)
    agent = machine.start("agent")

    def has_begun() -> bool:
        for folder in machine.home.runs.glob("*"):
            record, log = read_record(folder), folder / "log.jsonl"
            if record is not None and record.sweep == made["id"] and log.exists():
                config = json.loads((folder / "trial.json").read_text())
                if config["max_steps"] == STEPS and log.read_text().count("\n") >= 2:
                    return True
        return False

    wait(has_begun, 120)
    return made, agent


def assert_every_step_once(machine: Machine, made: dict[str, Any]) -> None:
    """Each trial is finished and has each of its steps once, in order, on the server and in its file."""
    runs = machine.api(
        '[[run.id, run.state, run.config["max_steps"], [row["_step"] for row in run.scan_history()]]'
        f' for run in api.sweep("{made["path"]}").runs]'
    )
    assert [(state, steps) for _, state, steps, _ in runs] == [("finished", 3), ("finished", STEPS)]
    for run_id, _, steps, on_server in runs:
        every_step = list(range(1, steps + 1))
        assert on_server == every_step
        rows = (machine.home.runs / run_id / "log.jsonl").read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == every_step


def test_interrupted_trials_are_requeued_and_finished_by_the_next_agent(fake_machine: Machine) -> None:
    made, agent = start_long_trial(fake_machine)
    agent.send_signal(signal.SIGINT)
    said, _ = agent.communicate(timeout=90)
    assert agent.returncode == 130, said
    assert "requeued" in said
    assert fake_machine.json("status", made["id"])["failed"] == 0
    said = fake_machine.run("agent")
    assert "resuming after step" in said
    assert_every_step_once(fake_machine, made)


def test_a_killed_worker_is_replaced_and_its_trial_continues_in_the_same_run(fake_machine: Machine) -> None:
    made, agent = start_long_trial(fake_machine)
    workers = subprocess.run(
        ["pgrep", "-P", str(agent.pid), "-f", " ".join(COMMAND)], capture_output=True, text=True, check=True
    )
    os.kill(int(workers.stdout.split()[0]), signal.SIGKILL)
    said, _ = agent.communicate(timeout=240)
    assert agent.returncode == 0, said
    assert "the worker was killed by SIGKILL; starting another" in said
    assert_every_step_once(fake_machine, made)


def test_a_sweep_is_paused_resumed_and_canceled(fake_machine: Machine) -> None:
    made = fake_machine.create_sweep(SWEEP)
    states = []
    for command in ("pause", "resume", "cancel"):
        if command == "pause":
            fake_machine.run("agent", "--count", "1")  # a sweep that never began cannot be paused
        fake_machine.run(command, made["id"])
        states.append(fake_machine.json("status", made["id"])["state"])
    assert states == ["PAUSED", "RUNNING", "CANCELED"]


def test_trials_are_trained_together_in_one_worker(fake_machine: Machine) -> None:
    made = fake_machine.create_sweep(SWEEP.replace("max_steps: {value: 4}", f"max_steps: {{value: {STEPS}}}"))
    said = fake_machine.run("agent", "--trials-per-gpu", "2")
    assert said.index("trial 2 of 2") < said.index("trial 1 finished")
    assert said.count("cpu: ready") == 1
    assert fake_machine.json("status", made["id"])["finished"] == 2


FAILING = """
from kto_sweep.errors import FailureCause, TrialFailure

def before_step(config, step):
    if config["learning_rate"] == 3e-3:
        raise TrialFailure(FailureCause.BAD_CONFIG, "learning rates of 3e-3 are too high", hint="use 1e-2")
"""


def test_a_trial_that_cannot_run_is_reported_and_the_next_one_runs(fake_machine: Machine) -> None:
    fake_machine.create_sweep(SWEEP)
    fake_machine.script_training(FAILING)
    said = fake_machine.run("agent")
    assert "FAILED (bad config)" in said
    assert "learning rates of 3e-3 are too high" in said
    assert "use 1e-2" in said
    status = fake_machine.json("status")
    assert (status["finished"], status["failed"]) == (1, 1)
