"""A resumed sweep runs only its missing and retryable trials."""

from typing import Any

import pytest
from machine import Machine
from untrained_trials import SWEEP, run_trials

from kto_sweep.home import Home
from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep import resume
from kto_sweep.sweep.ref import SweepRef, save_sweep_record
from kto_sweep.sweep.view import SweepView, TrialRecord
from kto_sweep.wandb_client import private_api
from kto_sweep.wandb_client.connection import Target

RUNS = """{run.id: [[row["_step"] for row in run.scan_history()], dict(run.summary_metrics)]
    for run in api.runs("local/kto-sweep")}"""


def counts(status: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(status[name] for name in ("state", "finished", "failed", "retryable", "missing"))


def test_a_finished_grid_runs_missing_cells_and_retries_interrupted_ones(machine: Machine) -> None:
    sweep = machine.create_sweep(SWEEP)["id"]
    (finished, *_), (diverged, *_), (cut_off, *_) = run_trials(
        machine, sweep, 3, {"0.001 2": "worker crash", "0.002 1": "diverged"}
    )
    machine.run("stop")
    status = machine.json("status")
    assert counts(status) == ("FINISHED", 1, 2, 1, 1)
    assert [(cell["parameters"]["batch_size"], cell["state"], cell["cause"]) for cell in status["cells"]] == [
        (1, "finished", ""),
        (1, "failed", "diverged"),
        (2, "failed", "worker crash"),
        (2, "not started", ""),
    ]
    assert (status["shown_state"], status["ended_by"]["kind"]) == ("stopped", "stop")
    output = machine.run("status")
    assert "failed: 1 worker crash (can be retried)   as told" in output
    assert f"    batch_size=2  learning_rate=0.001   run {cut_off}\n" in output
    assert "not started batch_size=2  learning_rate=0.002" in output
    assert f"Next: kto-sweep resume {sweep}" in output

    resumed = machine.json("resume")
    assert (resumed["was"], resumed["state"]) == ("FINISHED", "RUNNING")
    assert (resumed["again"], resumed["missing"]) == ([cut_off], 1)
    before = machine.api(RUNS)
    did = run_trials(machine, sweep)
    assert [(rate, size) for _, rate, size in did] == [(0.001, 2), (0.002, 2)]
    assert did[0][0] == cut_off
    assert counts(machine.json("status")) == ("FINISHED", 3, 1, 0, 0)
    after = machine.api(RUNS)
    assert [steps for steps, _ in after.values()] == [[1, 2, 3]] * 4
    assert "failure/cause" not in after[cut_off][1]
    assert (after[finished], after[diverged]) == (before[finished], before[diverged])

    assert f"Sweep local/kto-sweep/{sweep}: finished; nothing is left to run" in machine.run("resume")
    assert machine.json("resume", "--failed")["again"] == [diverged]


def test_a_server_that_cannot_retry_runs_gets_another_command(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulates W&B, which tests cannot reach."""
    space, ref = parse_space({"lr": {"values": [1, 2]}})[0], SweepRef("local", "kto-sweep", "s")
    assert space is not None
    trials = (
        TrialRecord("a", "a", "finished", {"lr": 1}, {}, None),
        TrialRecord("b", "b", "crashed", {"lr": 2}, {}, None),
    )
    view = SweepView(ref, "", "s", "FINISHED", "grid", "loss", "minimize", space, 2, trials)
    monkeypatch.setattr(resume, "read_sweep", lambda *_: view)
    monkeypatch.setattr(private_api, "set_run_state", lambda *_: False)
    home, target = Home(machine.folder), Target("https://w", "https://w", local=False)
    save_sweep_record(home, ref, local=False, base_url="https://w", file="lr.yaml")
    resumed = resume.resume_sweep(home, None, target, ref, failed=False, stopped=False)
    assert (resumed.after.view.state, resumed.retried, resumed.refused) == ("FINISHED", (), ("b",))
    assert "kto-sweep create lr.yaml --reuse local/kto-sweep/s" in resumed.advice[1]
