"""Parameter importance: known answers from synthetic runs."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kto_sweep.compare.importance import (
    MIN_RUNS,
    ImportanceRun,
    ImportanceTable,
    ParameterImportance,
    parameter_importance,
)

NAMES = ("learning_rate", "beta", "loss_type", "weight_decay")
Value = Callable[[dict[str, Any]], float]


def bowl(config: dict[str, Any]) -> float:
    """Best at a learning rate of 1e-5; loss_type matters less, beta a little, weight_decay not at all."""
    off = math.log10(config["learning_rate"]) + 5
    return off**2 + 0.3 * (config["loss_type"] == "apo") + 0.1 * config["beta"]


def sweep(count: int, value: Value = bowl, noise: float = 0.05, seed: int = 1) -> list[ImportanceRun]:
    rng = random.Random(seed)
    runs = []
    for _ in range(count):
        config = {
            "learning_rate": 10 ** rng.uniform(-6.3, -3.7),
            "beta": rng.choice([0.05, 0.1, 0.2, 0.4]),
            "loss_type": rng.choice(["kto", "apo"]),
            "weight_decay": rng.uniform(0, 0.1),
        }
        runs.append(ImportanceRun(config, value(config) + rng.gauss(0, noise)))
    return runs


def importance(runs: list[ImportanceRun], *, maximize: bool = False) -> ImportanceTable:
    return parameter_importance(NAMES, runs, maximize=maximize)


def row(table: ImportanceTable, name: str) -> ParameterImportance:
    (found,) = [row for row in table.rows if row.name == name]
    return found


def test_important_parameters_come_first_and_one_without_effect_last() -> None:
    table = importance(sweep(60))
    assert [row.name for row in table.rows[:2]] == ["learning_rate", "loss_type"]
    assert table.rows[0].importance > 0.6
    assert row(table, "weight_decay").importance < 0.05
    assert sum(row.importance for row in table.rows) == pytest.approx(1)
    assert table.note.startswith("From 60 runs; a random forest explains ")


def test_one_outlier_changes_little() -> None:
    runs = sweep(50, lambda config: 10 * config["beta"] + bowl(config))
    before = importance(runs)
    runs[3] = replace(runs[3], value=1e6)
    after = importance(runs)
    assert before.rows[0].name == after.rows[0].name == "beta"
    for name in NAMES:
        assert row(after, name).importance == pytest.approx(row(before, name).importance, abs=0.1)


def test_the_order_of_runs_and_parameters_changes_nothing() -> None:
    runs = [*sweep(30), *sweep(30)]  # with ties
    expected = importance(runs)
    assert expected.rows
    rng = random.Random(2)
    for _ in range(3):
        shuffled = [replace(run, config=dict(reversed(run.config.items()))) for run in runs]
        rng.shuffle(shuffled)
        assert parameter_importance(rng.sample(NAMES, 4), shuffled, maximize=False) == expected


def test_of_very_many_runs_a_sample_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [*sweep(250), *(replace(run, value=None) for run in sweep(3))]
    whole = importance(runs)
    monkeypatch.setattr("kto_sweep.compare.importance.MAX_RUNS", 100)
    sampled = importance(runs)
    assert sampled.note.startswith(
        "From a sample of 100 of 250 runs, without 3 that failed or have no value;"
    )
    assert sampled.rows[0].name == whole.rows[0].name == "learning_rate"
    assert sampled.rows[0].importance == pytest.approx(whole.rows[0].importance, abs=0.1)
    random.Random(1).shuffle(runs)
    assert importance(runs) == sampled


def test_numbers_as_text_and_on_any_scale_give_the_same_shares() -> None:
    runs = sweep(30)
    expected = importance(runs)
    as_text = [
        replace(run, config={**run.config, "learning_rate": f"{run.config['learning_rate']!r}"})
        for run in runs
    ]
    assert importance(as_text) == expected
    exponents = [
        replace(run, config={**run.config, "learning_rate": math.log10(run.config["learning_rate"])})
        for run in runs
    ]
    shares = {row.name: (row.importance, row.correlation) for row in expected.rows}
    assert {row.name: (row.importance, row.correlation) for row in importance(exponents).rows} == shares


def test_direction_and_region_of_a_parameter_that_is_better_low() -> None:
    runs = sweep(60, lambda config: math.log(config["learning_rate"]))
    rate = importance(runs).rows[0]
    assert (rate.name, rate.direction) == ("learning_rate", "lower is better")
    assert rate.correlation == pytest.approx(1, abs=0.05)
    low, high = map(float, rate.best_region.split(" to "))
    assert low == pytest.approx(min(run.config["learning_rate"] for run in runs), rel=0.05)
    assert high < 5e-6
    assert rate.sentence == (
        f"learning_rate: {rate.importance:.0%} of the importance; best from {rate.best_region}, worse above."
    )


def test_maximize_turns_direction_and_region_but_not_the_correlation() -> None:
    rate = importance(sweep(60, lambda config: math.log(config["learning_rate"])), maximize=True).rows[0]
    assert rate.direction == "higher is better"
    assert rate.correlation == pytest.approx(1, abs=0.05)
    assert rate.sentence.endswith(f"best from {rate.best_region}, worse below.")


def test_region_around_an_optimum_inside_the_range() -> None:
    rate = importance(sweep(100)).rows[0]
    low, high = map(float, rate.best_region.split(" to "))
    assert 2e-6 < low < 1e-5 < high < 5e-5
    assert rate.direction == ""
    assert rate.sentence.endswith("worse below and above.")


def test_listed_values_and_categories_are_named() -> None:
    table = importance(
        sweep(80, lambda config: abs(config["beta"] - 0.15) + 0.2 * (config["loss_type"] == "apo"))
    )
    assert row(table, "beta").best_region == "0.1 or 0.2"
    assert row(table, "beta").sentence.endswith("; best at 0.1 or 0.2, worse below and above.")
    loss = row(table, "loss_type")
    assert (loss.best_region, loss.direction, loss.correlation) == ("kto", "", None)
    assert loss.sentence.endswith("% of the importance; best with kto.")
    assert row(table, "weight_decay").sentence.endswith("% of the importance; no clear effect.")
    assert row(table, "weight_decay").best_region == ""


def test_numbers_that_no_two_runs_share_are_a_range() -> None:
    runs = [ImportanceRun({"learning_rate": 1.2345e-6 * 2**at}, float(at)) for at in range(8)]
    (rate,) = parameter_importance(["learning_rate"], runs, maximize=False).rows
    assert rate.best_region == "1.2e-06 to 4.9e-06"
    assert rate.sentence.endswith("; best from 1.2e-06 to 4.9e-06, worse above.")


def test_whole_numbers_are_shown_in_full() -> None:
    rng = random.Random(1)
    configs = [{"max_steps": rng.choice([100_000, 200_000, 400_000])} for _ in range(30)]
    runs = [ImportanceRun(config, config["max_steps"] + rng.random()) for config in configs]
    (steps,) = parameter_importance(["max_steps"], runs, maximize=False).rows
    assert steps.sentence == "max_steps: 100% of the importance; best at 100000, worse above."


def test_missing_numbers_do_not_make_a_category() -> None:
    """A reused run of another sweep may lack a parameter."""
    runs = sweep(60)
    runs[:5] = [replace(run, config={**run.config, "learning_rate": None}) for run in runs[:5]]
    rate = importance(runs).rows[0]
    assert rate.name == "learning_rate"
    assert rate.correlation is not None
    assert " to " in rate.best_region


def test_few_runs_give_no_importance() -> None:
    runs = sweep(MIN_RUNS, noise=0)
    table = importance([*runs[:-1], replace(runs[-1], value=None)])
    assert table == ImportanceTable((), f"Needs {MIN_RUNS} finished runs; {MIN_RUNS - 1} so far.")


def test_runs_without_a_value_are_counted_in_the_note() -> None:
    runs = sweep(40)
    table = importance([*runs, replace(runs[0], value=None), replace(runs[1], value=math.inf)])
    assert table.note.startswith(
        "From 40 runs, without 2 that failed or have no value; a random forest explains "
    )
    assert table.rows == importance(runs).rows


def test_the_note_says_when_runs_are_few_for_the_parameters() -> None:
    runs = sweep(11, lambda config: math.log(config["learning_rate"]), noise=0)
    assert importance(runs).note.endswith(", but 11 runs are few for 4 parameters.")


@pytest.mark.parametrize(
    "runs",
    [
        [ImportanceRun({"learning_rate": 1.0}, float(i)) for i in range(20)],
        [ImportanceRun({"learning_rate": float(i)}, 1.0) for i in range(20)],
    ],
)
def test_identical_runs_give_no_importance(runs: list[ImportanceRun]) -> None:
    table = parameter_importance(["learning_rate"], runs, maximize=False)
    assert table == ImportanceTable((), "All runs have the same parameters or the same value.")


@pytest.mark.slow
def test_pure_noise_is_silent() -> None:
    """At most one sweep of noise in 20 may have importance; without the margin for noise, two of these do."""
    tables = [importance(sweep(20, lambda _: 0.0, noise=1, seed=seed)) for seed in range(20)]
    silent = [table for table in tables if not table.rows]
    assert len(silent) >= 19
    assert silent[0].note == (
        "From 20 runs, the parameters predict nothing about the metric: none matters more than seed noise."
    )
