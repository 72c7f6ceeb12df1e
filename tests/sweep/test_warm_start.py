"""A Bayesian search with observations from earlier sweeps."""

import pytest
from machine import Machine
from untrained_trials import SWEEP, run_trials

from kto_sweep.search.space import Space
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.reuse import find_observed
from kto_sweep.sweep.view import SweepView, TrialRecord

CONFIG = {
    "method": "bayes",
    "metric": {"name": "eval/common_loss"},
    "parameters": {
        "learning_rate": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-4},
        "lora": {"parameters": {"r": {"values": [8, 16]}}},
        "model_size": {"value": "tiny"},
        "dataset": {"value": "d.jsonl"},
    },
}
GOOD = {"learning_rate": 1e-5, "lora": {"r": 8}, "model_size": "tiny", "dataset": "d.jsonl"}
VALUE = {"eval/common_loss": 0.3}


@pytest.mark.parametrize(
    ("change", "summary", "state", "observed"),
    [
        ({}, VALUE, "finished", True),
        ({"seed": 7}, VALUE, "finished", True),
        ({"epochs": 1, "_home": "x"}, VALUE, "finished", True),
        ({"lora": {"r": 16.0}}, VALUE, "finished", True),
        ({}, VALUE, "killed", False),
        ({}, {}, "finished", False),
        ({}, {"eval/common_loss": "NaN"}, "finished", False),
        ({"learning_rate": 1e-3}, VALUE, "finished", False),
        ({"lora": {"r": 32}}, VALUE, "finished", False),
        ({"dataset": "e.jsonl"}, VALUE, "finished", False),
        ({"epochs": 3}, VALUE, "finished", False),
        ({"no_such_thing": 3}, VALUE, "finished", False),
    ],
)
def test_a_trial_that_the_search_could_have_suggested_is_an_observation(change, summary, state, observed):
    trial = TrialRecord("a", "a", state, {**GOOD, **change}, summary, None)
    ref = SweepRef("local", "kto-sweep", "s")
    earlier = SweepView(ref, "", "s", "FINISHED", "random", "loss", "minimize", Space(()), None, (trial,))
    assert bool(find_observed(CONFIG, earlier)) == observed


def test_all_objectives_are_needed():
    objectives = [{"name": "eval/common_loss"}, {"name": "trial/seconds"}]
    config = {**CONFIG, "kto_sweep": {"objectives": objectives}}
    ref = SweepRef("local", "kto-sweep", "s")
    trials = tuple(
        TrialRecord(name, name, "finished", GOOD, summary, None)
        for name, summary in (("a", VALUE), ("b", {**VALUE, "trial/seconds": 3.0}))
    )
    earlier = SweepView(ref, "", "s", "FINISHED", "random", "loss", "minimize", Space(()), None, trials)
    assert [trial.run_id for trial in find_observed(config, earlier)] == ["b"]


def test_the_search_continues_from_earlier_sweeps(machine: Machine) -> None:
    """Of six configurations, four were tried and one of these failed: two and the failed one are left."""
    first = machine.create_sweep(SWEEP)["id"]
    run_trials(machine, first, outcomes={"0.001 2": "nan"})
    file = SWEEP.replace("grid", "bayes\nrun_cap: 3").replace("[0.001, 0.002]", "[0.001, 0.002, 0.004]")
    (machine.folder / "bayes.yaml").write_text(f"{file}kto_sweep: {{warm_start: [{first}]}}\n")
    said = machine.run("create", "bayes.yaml")
    assert f"Warm start: 3 of 4 trials of local/kto-sweep/{first} used as observations" in said
    status = machine.json("status")
    assert (status["expected"], status["finished"], status["missing"]) == (3, 0, 3)
    done = run_trials(machine, status["id"])
    assert sorted((rate, size) for _, rate, size in done) == [(0.001, 2), (0.004, 1), (0.004, 2)]
    status = machine.json("status")
    assert (status["state"], status["finished"], status["missing"]) == ("FINISHED", 3, 0)
    assert len(machine.json("compare")["trials"]) == 6
    assert "not in the new sweep's project, local/other" in machine.run(
        "create", "bayes.yaml", "--project", "other", code=2
    )
