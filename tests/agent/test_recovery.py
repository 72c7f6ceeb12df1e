"""An agent's reports about trials that other agents left behind, with a real server."""

import json
from pathlib import Path

from kto_sweep.run_record import RunRecord

FIND = """
from rich.console import Console
from kto_sweep.agent.recovery import find_trials_left
from kto_sweep.home import Home
from kto_sweep.wandb_client.connection import connect
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.server_choice import local_target

home = Home.from_environment()
target = local_target(home)
api = connect(target)
for _ in range(2):
    left = find_trials_left(Console(width=200), api, target, home, SweepRef("local", "kto-sweep", "thisone1"))
    print([orphan.run_id for orphan in left])
"""


SWEEP = """
method: grid
parameters:
  seed: {values: [1, 2]}
  model_size: {value: tiny}
  dataset: {value: ROWS}
  batch_size: {value: 4}
  max_steps: {value: 4}
""".replace("ROWS", str(Path(__file__).parents[2] / "examples" / "support_replies.jsonl"))


def test_trials_of_a_deleted_sweep_are_reported_once(fake_machine):
    sweep = fake_machine.create_sweep(SWEEP)["path"].split("/")[2]
    for run_id, of, base_url in (
        ("mine", "thisone1", ""),
        ("other", sweep, ""),
        ("gone", "deleted1", ""),
        ("gone-too", "deleted1", ""),
        ("far", "faraway1", "https://wandb.example"),
    ):
        folder = fake_machine.home.runs / run_id
        folder.mkdir(parents=True)
        (folder / "trial.json").write_text(json.dumps({"seed": 1}))
        RunRecord("local", "kto-sweep", of, not base_url, base_url, agent="dead").write(folder)
    said = fake_machine.python("-c", FIND)
    always = [
        "Continuing 1 trial of this sweep that an earlier agent left unfinished",
        f"Sweep {sweep} has 1 trial unfinished on this box: kto-sweep agent {sweep}",
    ]
    lines = said.splitlines()
    assert lines.count("['mine']") == 2
    assert [lines.count(line) for line in always] == [2, 2]
    assert said.count("Sweep deleted1 was deleted; the files of 2 trials stay in") == 1
    assert lines.count("Sweep faraway1 has 1 trial unfinished on this box: kto-sweep agent faraway1") == 2
