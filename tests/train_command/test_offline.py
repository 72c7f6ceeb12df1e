"""Runs whose W&B files are sent later."""

import json
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from forked_python import forked_python
from machine import Machine
from train_runs import FLAGS, SLOW_STEP_9, interrupted, rows, run_folders

from kto_sweep.locks import try_exclusive
from kto_sweep.run_record import read_record

STEPS = ("--max-steps", "12", "--batch-size", "4", "--eval-steps", "6")


def sync_with_wandb(machine: Machine, folder: Path) -> None:
    """Run `wandb sync` on a run's files, with the embedded server as W&B."""
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(forked_python())} -m wandb sync {folder}/wandb/offline-run-*"],
        cwd=machine.folder,
        env=machine.environment | machine.server_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr


def on_server(machine: Machine, run_id: str) -> tuple[str, list[dict[str, object]]]:
    """A run's state and history; it also has its hyper-parameters and record."""
    state, history, config = machine.api(
        "(lambda r: [r.state, list(r.scan_history()), r.config])"
        f"(wandb.Api(overrides={{'entity': 'local'}}).run('local/kto-sweep/{run_id}'))"
    )
    assert config["beta"] == 0.1
    assert config["record"]["model"] == {"name": "tiny", "trainable_parameters": 3}
    return state, history


def assert_whole(machine: Machine, run_id: str, answers: int = 0) -> None:
    """Check that the server has each logged value once at its step, followed by the table of answers."""
    state, history = on_server(machine, run_id)
    assert state == "finished"
    if answers:
        assert history.pop()["samples"]["nrows"] == answers
    assert [row["_step"] for row in history] == list(range(1, 13))
    logged = rows(machine.home.runs / run_id)
    assert [row["step"] for row in logged if "loss" in row] == list(range(1, 13))
    for row in logged:
        there = history[row["step"] - 1]
        assert {name: there[name] for name in row.keys() - {"step"}} == {
            name: value for name, value in row.items() if name != "step"
        }


@pytest.mark.slow  # the killed one is the harder case
def test_an_interrupted_and_resumed_offline_run_is_synced_once(fake_machine: Machine) -> None:
    fake_machine.script_training(SLOW_STEP_9)
    output = interrupted(fake_machine, *STEPS, after=" 7/12", WANDB_MODE="offline")
    cut = run_folders(fake_machine)[0]
    before = (cut / "log.jsonl").read_text().splitlines()
    assert f"To send it: kto-sweep sync {cut.name}" in output
    assert f"run kto-sweep/{cut.name}: offline, on no server yet" in fake_machine.run("sync")
    sync_with_wandb(fake_machine, cut)  # the part that there is can be sent already
    assert "Nothing to send" in fake_machine.run("sync")
    state, history = on_server(fake_machine, cut.name)
    assert state != "finished"
    assert [row["_step"] for row in history] == [
        json.loads(line)["step"] for line in before if "loss" in line
    ]
    fake_machine.run("train", "--resume-from-checkpoint", "--cpu", WANDB_MODE="offline")
    assert_log_continues(cut, before)
    fake_machine.python("-c", LOG_ANSWERS, cut.name, WANDB_MODE="offline")
    assert len(list((cut / "wandb").glob("offline-run-*"))) == 2  # the whole run's, and that of its answers
    sync_with_wandb(fake_machine, cut)
    assert_whole(fake_machine, cut.name, answers=2)


LOG_ANSWERS = """
import sys
from kto_sweep.agent.wandb_run import log_answers
from kto_sweep.home import Home
from kto_sweep.sweep.ref import SweepRef

folder = Home.from_environment().runs / sys.argv[1]
log_answers(SweepRef("", "kto-sweep", ""), sys.argv[1], folder, [("why?", "no", "yes")] * 2)
"""
"""What `kto-sweep train --samples 2` does with the answers of the models, which fake workers do not train."""


def assert_log_continues(folder: Path, before: list[str]) -> None:
    """The log of a resumed run begins with the lines of its first part."""
    assert (folder / "log.jsonl").read_text().splitlines()[: len(before)] == before
    assert "7/12" in (folder / "console.log").read_text()


def killed_run(machine: Machine) -> Path:
    """The folder of an offline run that was killed after step 7."""
    machine.script_training(SLOW_STEP_9)
    interrupted(machine, *STEPS, after=" 7/12", how=signal.SIGKILL, WANDB_MODE="offline")
    (cut, *_) = run_folders(machine)
    for _ in range(300):  # its worker may outlive it for a moment, and holds the run
        with try_exclusive(cut) as free:
            if free:
                return cut
        time.sleep(0.2)
    raise AssertionError(f"{cut} stays locked")


def test_a_killed_and_resumed_offline_run_is_synced_once(fake_machine: Machine) -> None:
    cut = killed_run(fake_machine)
    before = (cut / "log.jsonl").read_text().splitlines()
    assert fake_machine.json("sync")["offline"] == [cut.name]
    fake_machine.run("train", "--resume-from-checkpoint", "--cpu", WANDB_MODE="offline")
    assert_log_continues(cut, before)
    assert len(list((cut / "wandb").glob("offline-run-*"))) == 1
    said = fake_machine.run("sync", cut.name, code=1)  # without a key
    assert f"run kto-sweep/{cut.name}: no key for W&B" in said
    assert f"kto-sweep sync {cut.name} --local" in said
    sent = {"sent": [f"local/kto-sweep/{cut.name}"], "failed": {}, "offline": []}
    assert fake_machine.json("sync", "--local") == sent
    assert_whole(fake_machine, cut.name)
    assert "already synced" in fake_machine.run("sync", cut.name)
    said = fake_machine.run("sync", cut.name, "--wandb", code=2)
    assert f"run {cut.name} belongs to the embedded server" in said


def test_an_offline_run_is_sent_to_the_server_of_the_key(fake_machine: Machine) -> None:
    ended = fake_machine.json("train", *FLAGS, *STEPS, WANDB_MODE="offline")
    folder = run_folders(fake_machine)[0]
    assert (ended["run"], ended["folder"], ended["url"]) == (folder.name, str(folder), None)
    assert (ended["state"], ended["offline"], ended["sent"], ended["exit_code"]) == (
        "finished",
        True,
        False,
        0,
    )
    assert ended["summary"]["eval/common_loss"] == rows(folder)[-1]["eval/common_loss"]
    assert "already synced" not in fake_machine.run("sync", "--wandb", **fake_machine.server_environment())
    assert_whole(fake_machine, folder.name)
    record = read_record(folder)
    assert record is not None
    assert (record.base_url, record.sent) == (fake_machine.address.url, True)


def test_an_offline_run_is_resumed_with_a_server(fake_machine: Machine) -> None:
    cut = killed_run(fake_machine)
    fake_machine.run("train", "--resume-from-checkpoint", "--cpu", "--local")
    assert_whole(fake_machine, cut.name)
    assert not list((cut / "wandb").glob("offline-run-*"))
