"""A trial's W&B run that cannot be begun, or whose end cannot be sent."""

import subprocess
import sys
from pathlib import Path

from kto_sweep.run_record import unclaimed

OPENED = """
import os, sys
from pathlib import Path
os.environ.update(WANDB_MODE="offline", WANDB_ERROR_REPORTING="false", WANDB_SILENT="true")
import wandb
from wandb.sdk import wandb_setup
from kto_sweep.agent.runs import Objective, TrialRun
from kto_sweep.sweep.ref import SweepRef

folder = Path(sys.argv[1])

def opened():
    return TrialRun.open(
        SweepRef("e", "p", ""), "run1", {"learning_rate": 0.1}, folder,
        objective=Objective("loss", "minimize"), local=False, on_stop=lambda: None, home="h", agent="a",
        device="cpu", patience=5,
    )

def still_open():
    return [run.id for run in wandb_setup.singleton()._active_runs]

mark, finish = wandb.Run.mark_preempting, wandb.Run.finish
wandb.Run.mark_preempting = lambda self: (print("preempting"), mark(self))
wandb.Run.finish = lambda self, exit_code=None: (print("ends with", exit_code), finish(self, exit_code))

"""
NOT_BEGUN = """
(folder / "log.jsonl.new").mkdir(parents=True)  # nothing can be written there, as on a full disk
try:
    opened()
except OSError as error:
    print("not begun:", error.strerror)
print("open:", still_open())
"""


def python(code: str, folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_a_run_that_cannot_be_begun_is_handed_back_and_not_finished(tmp_path):
    folder = tmp_path / "run1"
    said = python(OPENED + NOT_BEGUN, folder)
    assert said == ["preempting", "ends with 1", "not begun: Is a directory", "open: []"]
    with unclaimed(folder) as free:
        assert free
