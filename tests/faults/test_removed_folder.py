"""A user removes the folder of a trial that trains."""

import json
import shutil

from sweep_harness import SweepHarness

STEP = """
import time

def before_step(config, step):
    time.sleep(0.1 if 4 <= step < 14 else 0)
"""


def test_the_folder_of_a_trial_is_made_again_and_it_is_said_once(tmp_path):
    harness = SweepHarness(tmp_path, {"seed": [1]})
    harness.script_training(STEP)
    try:
        harness.create()
        harness.start_agent()
        harness.wait(lambda: harness.steps() >= 4, what="four steps")
        (folder,) = harness.home.runs.iterdir()
        shutil.rmtree(folder, ignore_errors=True)
        harness.finish()
        assert harness.output().count(f"{folder} was removed while the trial trains") == 1
        assert (folder / "console.log").read_text().count("was removed while the trial trains") == 1
        assert [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()] == [
            *range(1, 41)
        ]
        assert {"trial.json", "run.json"} <= {path.name for path in folder.iterdir()}
        assert [run.state for run in harness.runs()] == ["finished"]
    finally:
        harness.close()
