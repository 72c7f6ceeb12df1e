"""A sweep with a wider range: what the file has, what it reuses, and when there is nothing to widen."""

import pytest
import yaml
from machine import Machine
from sweep_views import METRIC, ranked, sweep_view, trial
from untrained_trials import SWEEP, run_trials

from kto_sweep.errors import UsageError
from kto_sweep.sweep.view import SweepView
from kto_sweep.sweep.widening import widen
from kto_sweep.sweep_file.sweep_config import check_sweep_text

RATES = {"learning_rate": {"values": [1e-5, 2e-5, 4e-5]}}
LOG = {"learning_rate": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-5}}


def grid_view(best: float, **keys: object) -> SweepView:
    """Three rates, of which `best` has the lowest loss."""
    return sweep_view(
        RATES,
        *(trial(n, abs(rate - best), learning_rate=rate) for n, rate in enumerate([1e-5, 2e-5, 4e-5])),
        **keys,
    )


@pytest.mark.parametrize(
    ("best", "values"),
    [(4e-5, [1e-5, 2e-5, 4e-5, 8e-5, 1.6e-4]), (1e-5, [2.5e-6, 5e-6, 1e-5, 2e-5, 4e-5])],
)
def test_a_grid_grows_at_the_end_of_the_best_value_and_reuses_the_rest(best, values):
    view = grid_view(best)
    new = widen(view, ranked(view), "learning_rate")
    checked = check_sweep_text(new.text(), "file.yaml")
    assert checked.sweep is not None, checked.problems
    assert new.config["parameters"]["learning_rate"] == {"values": values}
    assert (new.reuse, str(new.price)) == ("local/kto-sweep/ab12", "2 trials, about 0.033 GPU-hours")
    assert (new.config["name"], checked.sweep.expected_trials) == ("ab12-wider", 5)
    assert "# Start: kto-sweep create FILE --reuse local/kto-sweep/ab12\n" in new.text()


def test_a_bayesian_search_starts_with_the_trials_and_keeps_its_other_keys():
    view = sweep_view(
        LOG,
        *(trial(n, loss, learning_rate=rate) for n, (loss, rate) in enumerate([(0.3, 9.9e-6), (0.4, 2e-6)])),
        method="bayes",
        run_cap=12,
        early_terminate={"type": "hyperband", "min_iter": 1},
        kto_sweep={"replicates": 2},
    )
    new = widen(view, ranked(view), "learning_rate")
    file = yaml.safe_load(new.text())
    assert file["parameters"]["learning_rate"] == {**LOG["learning_rate"], "max": 1e-4}
    assert file["kto_sweep"] == {"replicates": 2, "warm_start": ["local/kto-sweep/ab12"]}
    assert (file["run_cap"], file["early_terminate"]["type"], new.reuse) == (12, "hyperband", None)
    assert str(new.price) == "12 trials, about 0.2 GPU-hours"
    assert check_sweep_text(new.text(), "file.yaml").problems == ()


def test_a_random_search_says_that_it_starts_anew():
    view = sweep_view(LOG, trial(1, 0.3, learning_rate=9.9e-6), method="random")
    new = widen(view, ranked(view), "learning_rate")
    assert new.notes == ("method random uses no earlier trials: all trials are new",)
    assert str(new.price) == "unlimited trials"


@pytest.mark.parametrize(("target", "kept"), [(0.35, False), (0.25, True)])
def test_a_target_that_the_sweep_has_reached_would_end_the_new_one(target, kept):
    view = sweep_view(
        LOG, trial(1, 0.3, learning_rate=9.9e-6), method="bayes", metric={**METRIC, "target": target}
    )
    new = widen(view, ranked(view), "learning_rate")
    assert ("target" in new.config["metric"], bool(new.notes)) == (kept, not kept)


def test_a_parameter_in_a_group_is_named_in_full_or_by_its_own_name():
    view = sweep_view(
        {"lora": {"parameters": {"r": {"values": [2, 4]}, "dropout": {"value": 0.1}}}},
        trial(1, 0.3, lora={"r": 4, "dropout": 0.1}),
    )
    for name in ("lora.r", "r", "lora_r"):
        group = widen(view, ranked(view), name).config["parameters"]["lora"]
        assert group == {"parameters": {"r": {"values": [2, 4, 8, 16]}, "dropout": {"value": 0.1}}}


@pytest.mark.parametrize(
    ("parameters", "config", "name", "message", "hint"),
    [
        (RATES, {"learning_rate": 2e-5}, "learning_rate", "inside the range 1e-05 to 4e-05", "compare ab12"),
        (RATES, {"learning_rate": 2e-5}, "learningrate", "not searched in sweep ab12", "learning_rate"),
        (RATES, {"learning_rate": 2e-5}, "beta", "beta is not searched", "one of learning_rate"),
        (
            {"optimizer": {"values": ["adamw", "adamw_8bit"]}},
            {"optimizer": "adamw"},
            "optimizer",
            "optimizer has no ends",
            "by hand",
        ),
        (
            {"lora_r": {"values": [1, 2, 4]}},
            {"lora_r": 1},
            "lora_r",
            "nothing lies beyond the best lora_r (1), which is a whole number of at least 1",
            "by hand",
        ),
        (
            {"beta": {"distribution": "log_normal", "mu": -2, "sigma": 1}},
            {"beta": 9.0},
            "beta",
            "its distribution is log_normal",
            "by hand",
        ),
        (
            {"configuration": {"values": [{"beta": 0.1}, {"beta": 0.3}]}},
            {"configuration": {"beta": 0.3}},
            "configuration.beta",
            "configuration lists whole configurations",
            "they come from",
        ),
        ({"seed": {"values": [1, 2]}}, {"seed": 2}, "seed", "seeds have no order", "replicate ab12"),
    ],
)
def test_what_cannot_be_widened_is_an_error(parameters, config, name, message, hint):
    method = "random" if "beta" in parameters else "grid"
    view = sweep_view(parameters, trial(1, 0.3, **config), method=method)
    with pytest.raises(UsageError) as error:
        widen(view, ranked(view), name)
    assert message in error.value.message
    assert hint in error.value.hint


def test_without_a_finished_trial_no_end_is_the_best():
    view = sweep_view(RATES, trial(1, 0.1, "failed", learning_rate=1e-5))
    with pytest.raises(UsageError, match="no finished trial with a value of eval/common_loss"):
        widen(view, ranked(view), "learning_rate")


def test_a_wider_grid_trains_only_its_new_cells(machine: Machine) -> None:
    first = machine.create_sweep(SWEEP)["id"]
    old = run_trials(machine, first)
    made = machine.json("widen", "learning_rate")  # without a name: the last sweep
    assert (made["from"], made["trials_to_train"]) == (f"local/kto-sweep/{first}", 4)
    trained = run_trials(machine, made["id"])
    assert sorted({rate for _, rate, _ in trained}) == [0.00025, 0.0005]
    assert len(trained) == 4
    compared = machine.json("compare", made["id"])
    assert {run for run, _, _ in old} < {trial["run_id"] for trial in compared["trials"]}
    status = machine.json("status")
    assert (status["state"], status["finished"]) == ("FINISHED", 8)
    assert "Error: Missing argument 'PARAMETER'" in machine.run("widen", code=2)


def test_a_wider_search_starts_with_the_earlier_trials(machine: Machine) -> None:
    """Both rates of the search are ends of its range, and the lower one has the lower loss."""
    text = SWEEP.replace("method: grid", "method: bayes\nrun_cap: 4").replace(
        "{values: [0.001, 0.002]}", "{distribution: q_uniform, min: 0.002, max: 0.003, q: 0.001}"
    )
    first = machine.create_sweep(text)["id"]
    best = min(rate for _, rate, _ in run_trials(machine, first))
    output = machine.run("widen", first, "learning_rate", "--file", "wider.yaml")
    assert f"Warm start: 4 of 4 trials of local/kto-sweep/{first} used as observations" in output
    entry = yaml.safe_load((machine.folder / "wider.yaml").read_text())["parameters"]["learning_rate"]
    ends = (0.001, 0.003) if best == 0.002 else (0.002, 0.004)
    assert entry == {"distribution": "q_uniform", "min": ends[0], "max": ends[1], "q": 0.001}
