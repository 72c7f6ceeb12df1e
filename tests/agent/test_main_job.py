"""The main workflow of a user without an account: create a sweep, run an agent, compare the runs."""

import json
import subprocess

import pytest
from machine import ROOT
from short_sweep import SWEEP

READ_BACK = """
import json, wandb
sweep = wandb.Api().sweep("{path}")
runs = [
    {{"id": run.id, "state": run.state, "config": run.config, "summary": dict(run.summary_metrics),
      "steps": [row["_step"] for row in run.scan_history(keys=["_step", "loss"])],
      "system": len(run.history(stream="system", pandas=False)),
      "console": [line.content for line in run.console_logs()]}}
    for run in sweep.runs
]
print(json.dumps({{"runs": runs, "best": sweep.best_run().id, "state": sweep.state}}))
"""


ALERTS = """
kto_sweep:
  alerts: ["learning_rate > 0.0001", "kl_raw > 1000"]
"""


@pytest.fixture(scope="module")
def finished(machine):
    """A sweep of two trials that an agent has finished, and the agent's output."""
    made = machine.create_sweep(SWEEP + ALERTS)
    return made, machine.run("agent", "--alert", "loss < 100")


def test_create_prints_the_sweep(finished):
    made, _ = finished
    assert set(made) == {"id", "path", "url", "expected_trials", "reused", "next"}
    assert made["path"].split("/")[-1] == made["id"]
    assert made["url"].startswith("http://127.0.0.1:")
    assert made["expected_trials"] == 2


def test_the_agent_prints_its_progress(finished):
    made, said = finished
    assert "Talking to the embedded server at http://127.0.0.1:" in said
    assert "trial 1 of 2 on cpu: learning_rate=0.003" in said
    assert "trial 2 of 2 on cpu: learning_rate=0.01" in said
    assert "2 of 2 done" in said
    assert f"Next: kto-sweep compare {made['id']}" in said
    assert said.count("WARNING: step 1: loss < 100: loss is 0.5") == 2


def test_status_counts_the_cells(machine, finished):
    status = machine.json("status")
    counts = {
        name: status[name] for name in ("state", "expected", "finished", "running", "failed", "missing")
    }
    assert counts == {
        "state": "FINISHED",
        "expected": 2,
        "finished": 2,
        "running": 0,
        "failed": 0,
        "missing": 0,
    }


def test_compare_ranks_by_the_default_metric(machine, finished):
    compared = machine.json("compare")
    assert (compared["metric"], compared["goal"]) == ("eval/common_loss", "minimize")
    assert [trial["rank"] for trial in compared["trials"]] == [1, 2]
    values = [trial["summary"]["eval/common_loss"] for trial in compared["trials"]]
    assert values == sorted(values)
    assert {trial["config"]["learning_rate"] for trial in compared["trials"]} == {0.003, 0.01}


def test_wandb_api_reads_every_trial_and_agrees_on_the_best(machine, finished):
    made, _ = finished
    read = read_back(machine, made)
    assert read["state"] == "FINISHED"
    assert len(read["runs"]) == 2
    for run in read["runs"]:
        assert run["state"] == "finished"
        assert run["config"]["batch_size"] == 4
        lineage = json.loads((machine.home.runs / run["id"] / "lineage.json").read_text())
        record = run["config"]["record"]
        assert record.keys() >= {"model", "data", "environment", "command"}
        assert record == {name: lineage[name] for name in record}
        assert lineage["trial"].items() <= run["config"].items()
        assert run["steps"] == [1, 2, 3, 4]
        assert {"loss", "rewards/margins", "kl", "eval/common_loss"} <= set(run["summary"])
        assert {"trial/seconds", "trial/data", "trial/eval_data", "trial/model"} <= set(run["summary"])
        assert run["system"] > 0
        assert any("Margin" in line for line in run["console"])
    assert read["best"] == machine.json("compare")["trials"][0]["run_id"]


def read_back(machine, made):
    """A sweep and its runs, read by a script with wandb.Api."""
    script = READ_BACK.format(path=made["path"])
    return json.loads(machine.python("-c", script, WANDB_SILENT="true", **machine.server_environment()))


def test_first_losses_are_those_of_an_untrained_adapter(machine, finished):
    """KTO's loss is 0.5 where policy and reference agree (kto at weights 1: 1 - sigmoid(0))."""
    for folder in machine.home.runs.iterdir():
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert rows[0]["step"] == 1
        assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-3)
        assert (folder / "adapter/adapter_model.safetensors").exists()


def test_an_alert_comes_once_for_each_run_that_passes_its_limit(machine, finished):
    made, _ = finished
    project = made["path"].removesuffix(f"/{made['id']}")
    for run in machine.json("compare", made["path"])["trials"]:
        answer = machine.http.get(f"/-/data/{project}/runs/{run['run_id']}")
        alerts = answer.json()["alerts"]
        assert sorted((alert["level"], alert["title"]) for alert in alerts) == [
            ("WARN", "KTO: learning_rate > 0.0001"),
            ("WARN", "KTO: loss < 100"),
        ]
        kept = answer.json()["run"]["alerts"]
        assert sorted(alert["title"] for alert in kept) == ["learning_rate > 0.0001", "loss < 100"]
        assert {"level": "WARN", "title": "loss < 100", "text": "loss is 0.5", "step": 1} in kept
        assert "trial/alerts" not in answer.json()["run"]["summary"]
        assert "_alerts" not in run["config"]


def test_an_agent_of_a_finished_sweep_has_nothing_to_do(machine, finished):
    made, _ = finished
    done = machine.command("agent", "--json")
    assert "Nothing is left to run. The sweep is finished" in done.stderr
    assert json.loads(done.stdout) == {
        "sweep": made["path"],
        "url": made["url"],
        "state": "finished",
        "started": 0,
        "finished": 0,
        "stopped": 0,
        "failed": 0,
        "interrupted": False,
        "unsent": [],
        "exit_code": 0,
    }


def test_stock_wandb_tools_run_the_same_file(machine):
    (machine.folder / "agent.py").symlink_to(ROOT / "agent.py")
    environment = machine.environment | machine.server_environment()
    (machine.folder / "sweep.yaml").write_text(
        """
program: agent.py
command: ["${env}", "${interpreter}", "${program}", "--beta=0.5", "${args}", --lora_r, 4]
method: grid
metric: {name: eval/common_loss, goal: minimize}
parameters:
  learning_rate: {values: [3e-3, 1e-2]}
  model_size: {value: tiny}
  dataset: {value: examples/support_replies.jsonl}
  max_steps: {value: 2}
  max_length: {value: 128}
"""
    )
    created = subprocess.run(
        ["wandb", "sweep", "--project", "stock", "sweep.yaml"],
        cwd=machine.folder,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    assert created.returncode == 0, created.stderr
    line = next(line for line in created.stderr.splitlines() if "wandb agent" in line)
    path = line.split()[-1]
    agent = subprocess.run(
        ["wandb", "agent", path],
        cwd=machine.folder,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    assert agent.returncode == 0, agent.stderr
    trials = machine.json("compare", path)["trials"]
    assert [trial["state"] for trial in trials] == ["finished", "finished"]
    # The stock tools register values as YAML reads them: here as text. Trials train with the numbers.
    assert {trial["config"]["learning_rate"] for trial in trials} == {"3e-3", "1e-2"}
    assert {(trial["config"]["beta"], trial["config"]["lora_r"]) for trial in trials} == {(0.5, 4)}
    for run in read_back(machine, {"path": path})["runs"]:
        assert (run["config"]["seed"], run["config"]["batch_size"]) == (42, 8)
        record = run["config"]["record"]
        assert record["model"]["type"] == "llama"
        assert record["data"]["train"]["rows"] == 324
        assert "--beta=0.5" in record["command"]
    lineages = [machine.home.runs / trial["run_id"] / "lineage.json" for trial in trials]
    assert {json.loads(path.read_text())["trial"]["lora_r"] for path in lineages} == {4}
    assert {trial["summary"]["learning_rate"] > 0 for trial in trials} == {True}
