"""The search options of the `kto_sweep:` block: invalid ones, and where options are registered."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kto_sweep.sweep_file.kto_sweep_block import without_block
from kto_sweep.sweep_file.sweep_config import CheckedSweepFile, check_sweep_text

BAYES: dict[str, Any] = {
    "method": "bayes",
    "run_cap": 20,
    "parameters": {
        "learning_rate": {"values": [1.0e-6, 1.0e-5]},
        "model_size": {"value": "tiny"},
        "dataset": {"value": "rows.jsonl"},
    },
}


def checked(block: Any, **top: Any) -> CheckedSweepFile:
    return check_sweep_text(yaml.safe_dump({**BAYES, **top, "kto_sweep": block}), Path("s.yaml"))


def problems_of(block: Any, **top: Any) -> list[str]:
    """Place and text of each problem."""
    return [f"{'.'.join(problem.path[1:])}: {problem.what}" for problem in checked(block, **top).problems]


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ({"ashaa": {}}, "ashaa: ashaa is not a key of kto_sweep"),
        ({"asha": 3}, "asha: 3 is not a group of keys"),
        ({"asha": {}}, "asha: neither min_iter nor max_iter"),
        ({"asha": {"min_iter": 1, "max_iter": 9, "s": 1}}, "asha: both min_iter and max_iter"),
        ({"asha": {"min_iter": 0}}, "asha.min_iter: 0 is not a whole number of at least 1"),
        ({"asha": {"min_iter": 1, "eta": 1}}, "asha.eta: 1 is not a number above 1"),
        ({"asha": {"min_iter": 1, "strict": True}}, "asha.strict: strict is not a key of asha"),
        ({"asha": {"min_iter": 1}, "replicates": 2}, "asha: asha together with replicates"),
    ],
)
def test_invalid_asha(block: Any, problem: str) -> None:
    assert problems_of(block) == [problem]


def test_asha_and_hyperband_cannot_be_combined() -> None:
    hyperband = {"type": "hyperband", "min_iter": 1}
    assert problems_of({"asha": {"min_iter": 1}}, early_terminate=hyperband) == [
        "asha: asha together with early_terminate"
    ]


@pytest.mark.parametrize("method", ["grid", "random", "bayes"])
def test_asha_is_registered_only_with_the_embedded_server(method: str) -> None:
    sweep = checked({"asha": {"min_iter": "1", "eta": "3e0"}}, method=method).sweep
    assert sweep is not None
    assert sweep.config["kto_sweep"] == {"asha": {"min_iter": 1, "eta": 3.0}}
    config, notes = without_block(sweep.config)
    assert "kto_sweep" not in config
    assert notes == ("asha needs the embedded server; on W&B every trial trains to its end",)


def test_bands_that_no_trial_reaches_get_a_notice() -> None:
    sweep = checked({"asha": {"min_iter": 9}}).sweep
    assert sweep is not None
    assert any("asha compares trials from evaluation 9 on" in notice for notice in sweep.notices)


TWO = [{"name": "eval/common_loss"}, {"name": "trial/seconds", "goal": "minimize"}]


@pytest.mark.parametrize(
    ("objectives", "problem"),
    [
        ("loss", "objectives: not a list of two or three metrics"),
        (TWO[:1], "objectives: not a list of two or three metrics"),
        ([TWO[0], "eval/auc"], "objectives.1: eval/auc is not a metric"),
        ([TWO[0], {"goal": "minimize"}], "objectives.1: no name"),
        ([TWO[0], {"name": "eval/acu"}], "objectives.1.name: eval/acu is not a metric that trials log"),
        ([TWO[0], {"name": "failure/cause"}], "objectives.1.name: failure/cause cannot be the metric"),
        ([TWO[0], {"name": "eval/auc"}], "objectives.1: no goal"),
        ([TWO[0], {"name": "loss", "goal": "up"}], "objectives.1.goal: up is not a goal"),
        (
            [TWO[0], {"name": "loss", "impute": "best"}],
            "objectives.1.impute: impute is not a key of an objective",
        ),
        ([TWO[0], TWO[0]], "objectives.1.name: eval/common_loss is listed twice"),
    ],
)
def test_invalid_objectives(objectives: Any, problem: str) -> None:
    assert problems_of({"objectives": objectives}) == [problem]


def test_the_first_objective_is_the_metric() -> None:
    first = "objectives.0: the first objective is not the sweep's metric"
    assert problems_of({"objectives": TWO}, metric={"name": "eval/loss", "goal": "minimize"}) == [first]
    assert problems_of({"objectives": TWO}, metric={"name": "eval/common_loss", "goal": "maximize"}) == [
        first
    ]
    other = [{"name": "eval/auc", "goal": "maximize"}, TWO[1]]
    sweep = checked({"objectives": other}).sweep
    assert sweep is not None
    assert sweep.config["metric"] == other[0]
    assert sweep.config["kto_sweep"] == {"objectives": other}
    (note,) = without_block(sweep.config)[1]
    assert note.endswith("compare still shows time and memory trade-offs")


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ("abc", "warm_start: abc is not a list of sweeps"),
        ([], "warm_start: [] is not a list of sweeps"),
        (["abc", 12345678], "warm_start.1: 12345678 is not the name of a sweep"),
    ],
)
def test_invalid_warm_start(names: Any, problem: str) -> None:
    assert problems_of({"warm_start": names}) == [problem]


@pytest.mark.parametrize("method", ["grid", "random"])
def test_only_bayes_supports_a_warm_start(method: str) -> None:
    (problem,) = checked({"warm_start": ["abc"]}, method=method).problems
    assert problem.what == f"warm_start with method {method}"
    assert ("--reuse" in problem.hint) == (method == "grid")


def test_a_warm_start_is_not_registered() -> None:
    sweep = checked({"warm_start": ["abc", "me/kto/def"]}).sweep
    assert sweep is not None
    assert sweep.warm_start == ("abc", "me/kto/def")
    assert "kto_sweep" not in sweep.config
