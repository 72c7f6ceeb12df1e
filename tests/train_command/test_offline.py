"""Runs whose W&B files are sent later, with `wandb sync`."""

import json
import signal
import subprocess
import sys

import pytest
from train_box import Box, rows

from kto_sweep.local_server.start import ensure_server

STEPS = ("--max-steps", "12", "--batch-size", "4", "--eval-steps", "6")


def sync(box: Box, told: str) -> None:
    """Type what a run's end says, with the embedded server in place of W&B."""
    command = next(line for line in told.splitlines() if "wandb sync" in line).partition(": wandb ")[2]
    address = ensure_server(box.home)
    server = {"WANDB_BASE_URL": address.url, "WANDB_API_KEY": address.key}
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m wandb {command}"],
        cwd=box.folder,
        env=box.environment | server,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr


def on_server(box: Box, run_id: str) -> tuple[str, list[dict[str, object]]]:
    """A run's state and history."""
    return box.python(
        "(lambda r: [r.state, list(r.scan_history())])"
        f"(wandb.Api(overrides={{'entity': 'local'}}).run('local/kto-sweep/{run_id}'))"
    )


def assert_whole(box: Box, run_id: str, answers: int = 0) -> None:
    """The server has each of the log's values at its step, once, and then the table of answers."""
    state, history = on_server(box, run_id)
    assert state == "finished"
    if answers:
        assert history.pop()["samples"]["nrows"] == answers
    assert [row["_step"] for row in history] == list(range(1, 13))
    logged = rows(box.home.runs / run_id)
    assert [row["step"] for row in logged if "loss" in row] == list(range(1, 13))
    for row in logged:
        there = history[row["step"] - 1]
        assert {name: there[name] for name in row.keys() - {"step"}} == {
            name: value for name, value in row.items() if name != "step"
        }


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_offline_run_that_was_cut_off_and_resumed_is_synced_once(box: Box, how: signal.Signals) -> None:
    told = box.interrupted(*STEPS, after=" 7/12", how=how, WANDB_MODE="offline")
    cut = box.folders()[0]
    before = (cut / "log.jsonl").read_text().splitlines()
    if how == signal.SIGINT:  # the part that there is can be sent already
        sync(box, told)
        state, history = on_server(box, cut.name)
        assert state != "finished"
        assert [row["_step"] for row in history] == [
            json.loads(line)["step"] for line in before if "loss" in line
        ]
    told = box.run("train", "--resume-from-checkpoint", "--cpu", "--samples", "2", WANDB_MODE="offline")
    assert (cut / "log.jsonl").read_text().splitlines()[: len(before)] == before
    assert "7/12" in (cut / "console.log").read_text()
    assert len(list((cut / "wandb").glob("offline-run-*"))) == 2  # the whole run's, and that of its answers
    sync(box, told)
    assert_whole(box, cut.name, answers=2)


def test_a_run_begun_offline_goes_on_with_a_server(box: Box) -> None:
    box.interrupted(*STEPS, after=" 7/12", how=signal.SIGKILL, WANDB_MODE="offline")
    cut = box.folders()[0]
    box.run("train", "--resume-from-checkpoint", "--cpu", "--local")
    assert_whole(box, cut.name)
    assert not list((cut / "wandb").glob("offline-run-*"))
