"""Successive halving with real training: how far each trial trains; a pause does not change its curve."""

import json
import os

import pytest

FIXED = """
  model_size: {value: tiny}
  dataset: {value: examples/support_replies.jsonl}
  batch_size: {value: 4}
  max_steps: {value: 480}
  eval_steps: {value: 60}
  max_length: {value: 128}
"""
HALVING = f"""
method: grid
metric: {{name: eval/common_loss, goal: minimize}}
kto_sweep:
  asha: {{max_iter: 8, s: 2, eta: 2}}
parameters:
  learning_rate: {{values: [1.0e-6, 3.0e-3, 1.0e-5, 3.0e-4]}}
{FIXED}"""
ALONE = f"""
method: grid
parameters:
  learning_rate: {{values: [3.0e-3]}}
{FIXED}"""
SLOW = """
import sys, time

if "kto_sweep.train.worker" in sys.orig_argv:
    from kto_sweep.train.packed.engine import Engine

    take = Engine.step

    def step(self):
        time.sleep(0.03)  # a trial that is too fast has ended before it is told to pause
        return take(self)

    Engine.step = step
"""
CURVES = ("loss", "rewards/margins", "kl_raw", "grad_norm", "learning_rate", "eval/common_loss")


def curves(machine, trial):
    """The steps in a trial's own log and on the server."""
    lines = (machine.home.runs / trial["run_id"] / "log.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    sent = machine.api(f'list(api.run("{trial["path"]}").scan_history())')
    return [
        {name: row[name] for name in ("step", *CURVES) if row.get(name) is not None}
        for row in [*logged, *({**row, "step": row["_step"]} for row in sent)]
    ]


def trials(machine, made):
    project = made["path"].rpartition("/")[0]
    records = machine.json("compare", made["path"])["trials"]
    return {
        trial["config"]["learning_rate"]: {**trial, "path": f"{project}/{trial['run_id']}"}
        for trial in records
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_good_trials_finish_and_poor_ones_stay_paused(machine, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    made = machine.create_sweep(HALVING)
    agent = machine.run("agent", "--trials-per-gpu", "1", PYTHONPATH=path)
    status, found = machine.json("status"), trials(machine, made)
    logs = {rate: machine.home.runs / trial["run_id"] / "log.jsonl" for rate, trial in found.items()}
    steps = {rate: json.loads(log.read_text().splitlines()[-1])["step"] for rate, log in logs.items()}
    assert steps[3e-3] == 480
    assert all(120 <= steps[rate] < 480 for rate in (1e-6, 1e-5, 3e-4))
    assert found[3e-3]["state"] == "finished"
    assert {each["state"] for rate, each in found.items() if rate != 3e-3} == {"killed"}
    counts = ("state", "finished", "stopped", "running", "paused", "failed", "missing")
    assert [status[name] for name in counts] == ["FINISHED", 1, 3, 0, 0, 0, 0]
    assert "paused" in agent
    assert "resuming after step" in agent
    assert "nothing is left to run" in machine.run("resume")
    kept = {path.parent.parent.name for path in machine.home.runs.glob("*/checkpoint/last.safetensors")}
    assert kept == {found[3e-3]["run_id"]}  # the mark of a trial that is finished

    alone = machine.create_sweep(ALONE)
    machine.run("agent", "--trials-per-gpu", "1")
    baseline = trials(machine, alone)[3e-3]
    assert curves(machine, found[3e-3]) == curves(machine, baseline)
