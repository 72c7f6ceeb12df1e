"""An agent that is killed: its trial is interrupted, and the time that it took stays counted."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from agent_harness import wait
from fake_worker import CLI
from machine import Machine

from kto_sweep.sweep.view import BUSY

SWEEP = """
method: grid
parameters:
  max_steps: {values: [400]}
  model_size: {value: tiny}
  dataset: {value: examples/support_replies.jsonl}
  eval_steps: {value: 20}
"""
SPANS = f'[run.summary_metrics.get("{BUSY}") or [] for run in api.sweep("PATH").runs]'


@pytest.mark.slow
def test_time_on_a_device_never_shrinks(fake_machine: Machine) -> None:
    """The first attempt is killed, which its server learns from nobody; the second one ends in time."""
    sweep = fake_machine.create_sweep(SWEEP)

    def spans() -> list[list[Any]]:
        return fake_machine.api(SPANS.replace("PATH", sweep["path"]))

    def took() -> bool:
        return any(run and run[0][2] > run[0][1] for run in spans())

    agent = fake_machine.start("agent")
    wait(took, 120)
    agent.send_signal(signal.SIGKILL)
    agent.communicate(timeout=60)
    before = fake_machine.json("status", sweep["id"])["gpu_hours"]
    assert before["unit"] == "CPU-hours"
    assert before["spent"] > 0
    [[first]] = spans()

    fake_machine.run("agent", sweep["id"])
    after = fake_machine.json("status", sweep["id"])
    [[again, second]] = spans()
    assert again[:2] == first[:2]
    assert again[2] >= first[2]
    assert second[2] > second[1] >= again[2]
    gained = (after["gpu_hours"]["spent"] - before["spent"]) * 3600
    assert gained > 0.99 * (second[2] - second[1])
    assert (after["shown_state"], after["finished"]) == ("finished", 1), json.dumps(after)


@pytest.mark.slow
def test_a_trial_that_starts_over_on_another_box_keeps_its_earlier_time(
    fake_machine: Machine, tmp_path: Path
) -> None:
    """The other box has no checkpoint of it, so its run is overwritten there."""
    sweep = fake_machine.create_sweep(SWEEP)
    agent = fake_machine.start("agent")

    def recorded() -> list[list[Any]]:
        return fake_machine.api(SPANS.replace("PATH", sweep["path"]))

    wait(lambda: any(run and run[0][2] > run[0][1] for run in recorded()), 120)
    agent.send_signal(signal.SIGINT)
    agent.communicate(timeout=90)
    [[first]] = recorded()

    other = Machine(tmp_path, cli=CLI, environ=fake_machine.server_environment())
    assert "resuming after step" not in other.run("agent", sweep["path"])
    [[again, second]] = recorded()
    assert again == first
    assert second[0] != first[0]
    spent = fake_machine.json("status", sweep["id"])["gpu_hours"]["spent"] * 3600
    assert spent == pytest.approx(sum(end - start for _, start, end in (first, second)))
