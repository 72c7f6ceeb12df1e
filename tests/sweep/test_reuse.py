"""A new grid reuses the finished trials of an earlier sweep."""

import pytest
from machine import Machine
from untrained_trials import SWEEP, run_trials

from kto_sweep.errors import UsageError
from kto_sweep.search.space import Space
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.reuse import find_reusable
from kto_sweep.sweep.view import SweepView, TrialRecord

CONFIG = {
    "method": "grid",
    "parameters": {
        "lr": {"values": [1e-6, 1e-5]},
        "lora": {"parameters": {"r": {"value": 8}}},
        "data": {"value": "d"},
    },
}


def earlier(*trials: TrialRecord) -> SweepView:
    ref = SweepRef("local", "kto-sweep", "s")
    return SweepView(ref, "", "s", "FINISHED", "random", "loss", "minimize", Space(()), None, trials)


@pytest.mark.parametrize(
    ("config", "state", "same"),
    [
        ({"lr": 1e-6, "lora": {"r": 8}, "data": "d"}, "finished", True),
        ({"lr": 1e-6, "lora": {"r": 8.0}, "data": "d"}, "finished", True),
        ({"lr": 1e-6, "lora": {"r": 8}, "data": "d"}, "killed", False),
        ({"lr": 1e-6, "lora": {"r": 8}, "data": "d"}, "failed", False),
        ({"lr": 2e-6, "lora": {"r": 8}, "data": "d"}, "finished", False),
        ({"lr": 1e-6, "lora": {"r": 16}, "data": "d"}, "finished", False),
        ({"lr": 1e-6, "lora": {"r": 8}, "data": "e"}, "finished", False),
        ({"lr": 1e-6, "lora": {"r": 8}, "data": "d", "beta": 0.5}, "finished", False),
        ({"lr": 1e-6, "lora": {"r": 8}}, "finished", False),
    ],
)
def test_only_a_finished_trial_with_the_same_whole_configuration_is_reused(config, state, same):
    reuse = find_reusable(CONFIG, earlier(TrialRecord("a", "a", state, config, {}, None)))
    assert [trial.run_id for trial in reuse] == (["a"] if same else [])


def test_each_cell_reuses_one_trial():
    config = {"lr": 1e-6, "lora": {"r": 8}, "data": "d"}
    twice = [TrialRecord(name, name, "finished", config, {}, None) for name in ("a", "b")]
    assert [trial.run_id for trial in find_reusable(CONFIG, earlier(*twice))] == ["a"]


def test_a_sweep_that_is_not_a_grid_cannot_reuse():
    with pytest.raises(UsageError, match="method is random"):
        find_reusable(CONFIG | {"method": "random"}, earlier())


@pytest.mark.slow
def test_a_default_that_the_new_sweep_names_is_the_same_cell(machine: Machine) -> None:
    first = machine.create_sweep(SWEEP)["id"]
    old = run_trials(machine, first)
    (machine.folder / "named.yaml").write_text(
        f"{SWEEP}  beta: {{value: 0.1}}\n  lora_r: {{values: [16, 8]}}\n"
    )
    made = machine.json("create", "named.yaml", "--reuse", first)
    assert (set(made["reused"]), made["expected_trials"]) == ({run_id for run_id, _, _ in old}, 8)
    assert len(run_trials(machine, made["id"])) == 4
    assert machine.json("status", made["id"])["finished"] == 8


def test_reused_cells_are_not_trained_again_and_are_compared(machine: Machine) -> None:
    first = machine.create_sweep(SWEEP)["id"]
    old = run_trials(machine, first)
    wider = SWEEP.replace("[0.001, 0.002]", "[0.002, 0.004]")
    (machine.folder / "wider.yaml").write_text(wider)
    made = machine.json("create", "wider.yaml", "--reuse", first)
    taken = {run_id for run_id, rate, _ in old if rate == 0.002}
    assert (set(made["reused"]), made["expected_trials"]) == (taken, 4)
    assert [(rate, size) for _, rate, size in run_trials(machine, made["id"])] == [(0.004, 1), (0.004, 2)]
    status = machine.json("status")
    assert (status["id"], status["state"], status["finished"]) == (made["id"], "FINISHED", 4)
    compared = machine.json("compare")
    assert taken < {trial["run_id"] for trial in compared["trials"]}
    assert machine.json("status", first)["finished"] == 4
    assert "not in the new sweep's project, local/other" in machine.run(
        "create", "wider.yaml", "--reuse", first, "--project", "other", code=2
    )
