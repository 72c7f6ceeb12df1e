"""A trial's W&B run that cannot be started, or whose end cannot be sent."""

import os
from pathlib import Path

import python_forkserver

from kto_sweep.locks import try_exclusive
from kto_sweep.run_record import read_record

OPENED = """
import os, sys
from pathlib import Path
os.environ.update(WANDB_MODE="offline", WANDB_ERROR_REPORTING="false", WANDB_SILENT="true")
import wandb
from wandb.sdk import wandb_setup
from kto_sweep.agent.wandb_run import GivenBackError, ObjectiveTracker, TrialRun
from kto_sweep.locks import try_exclusive
from kto_sweep.sweep.ref import SweepRef

sys.stdout.reconfigure(line_buffering=True)
folder = Path(sys.argv[1])

def opened():
    return TrialRun.open(
        SweepRef("e", "p", ""), "run1", {"learning_rate": 0.1}, folder,
        objective=ObjectiveTracker("loss", "minimize"), local=False, on_stop=lambda: None,
        on_alert=print, home="h", agent="a", device="cpu", patience=5,
    )

def still_open():
    return [run.id for run in wandb_setup.singleton()._active_runs]

mark, finish = wandb.Run.mark_preempting, wandb.Run.finish
wandb.Run.mark_preempting = lambda self: (print("preempting"), mark(self))
wandb.Run.finish = lambda self, exit_code=None: (print("ends with", exit_code), finish(self, exit_code))

"""
NOT_STARTED = """
(folder / "log.jsonl").mkdir(parents=True)  # a file that cannot be opened
try:
    opened()
except GivenBackError as error:
    print("not started:", error.__cause__.strerror)
print("open:", still_open())
"""
NOT_ENDED = """
def broken(self, exit_code=None):
    raise RuntimeError("not today")

run = opened()
run.metrics(1, {"loss": 0.5})
wandb.Run.finish = broken
try:
    run.succeed({})
except RuntimeError as error:
    print(error)
with try_exclusive(folder) as free:
    print("free:", free)
run.release_folder()
os._exit(0)
"""
WITH_ALERTS = """
import json
from kto_sweep.alerts import SUMMARY, AlertLevel, RunAlert
run = opened()
run.alert(RunAlert(AlertLevel.WARN, "gradient norm", "it is 300", 1))
for step in (1, 2):
    run.metrics(step, {"loss": 0.5})
run.alert(RunAlert(AlertLevel.WARN, "KL large", "it is 120", 3))
run.fail("network", "it is down")
(folder / "checkpoint").mkdir()
(folder / "checkpoint/last.safetensors").touch()
again = opened()
print([entry["title"] for entry in again._run.summary[SUMMARY]])
again.fail("diverged", "far away")
kept = json.loads((folder / "alerts.json").read_text())[SUMMARY]
print([(entry["level"], entry["title"], entry["step"]) for entry in kept])
os._exit(0)
"""


def python(code: str, folder: Path) -> list[str]:
    done = python_forkserver.run(("-c", code, str(folder)), Path.cwd(), os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_a_run_that_cannot_be_started_is_returned_and_not_finished(tmp_path):
    folder = tmp_path / "run1"
    said = python(OPENED + NOT_STARTED, folder)
    assert said == ["preempting", "ends with 1", "not started: Is a directory", "open: []"]
    with try_exclusive(folder) as free:
        assert free


def test_a_run_whose_end_cannot_be_sent_releases_its_folder(tmp_path):
    folder = tmp_path / "run1"
    assert python(OPENED + NOT_ENDED, folder) == ["not today", "free: True"]
    assert (folder / "console.log").read_text().splitlines()[
        -1
    ] == "could not send the end of the run: not today"
    record = read_record(folder)
    assert record is not None
    assert (record.ended, record.sent) == (True, False)


def test_a_resumed_run_keeps_the_alerts_up_to_its_checkpoint(tmp_path):
    said = [line for line in python(OPENED + WITH_ALERTS, tmp_path / "run1") if not line.startswith("ends")]
    assert said == [
        "WARNING: step 1: gradient norm: it is 300",
        "WARNING: step 3: KL large: it is 120",
        "['gradient norm']",  # neither the alert after the checkpoint nor the failure
        "[('WARN', 'gradient norm', 1), ('ERROR', 'failed: diverged', 2)]",
    ]
