"""Parameter importance: known answers from synthetic runs."""

import random

import pytest

from kto_sweep.compare.importance import MIN_RUNS, parameter_importance


def made_up(count: int) -> tuple[list[dict[str, object]], list[float | None]]:
    """Runs whose value depends on the log of `lr` and on `optimizer`, and not on `seed`."""
    rng = random.Random(1)
    configs: list[dict[str, object]] = []
    values: list[float | None] = []
    for _ in range(count):
        power, optimizer = rng.uniform(-6, -3), rng.choice(["a", "b"])
        configs.append({"lr": 10**power, "optimizer": optimizer, "seed": rng.randrange(9)})
        values.append(5 + power + (0.7 if optimizer == "a" else 0.0))
    return configs, values


def test_important_parameters_come_first_and_noise_last() -> None:
    importance = parameter_importance(["seed", "optimizer", "lr"], *made_up(60))
    assert [row.name for row in importance.rows] == ["lr", "optimizer", "seed"]
    assert importance.rows[0].importance > 0.6
    assert importance.rows[-1].importance < 0.1
    assert sum(row.importance for row in importance.rows) == pytest.approx(1)
    lr, optimizer, _ = importance.rows
    assert lr.correlation is not None
    assert lr.correlation > 0.8
    assert optimizer.correlation is None
    assert "60 runs" in importance.note


def test_numeric_strings_are_numbers() -> None:
    configs, values = made_up(30)
    as_text = [{**config, "lr": f"{config['lr']:e}"} for config in configs]
    assert parameter_importance(["lr"], as_text, values).rows[0].correlation is not None


def test_few_runs_give_no_importance() -> None:
    configs, values = made_up(MIN_RUNS)
    found = parameter_importance(["lr"], configs, [*values[:-1], None])
    assert found.rows == ()
    assert found.note == f"Needs {MIN_RUNS} finished runs; {MIN_RUNS - 1} so far."
    assert parameter_importance(["lr"], configs, values).rows


def test_identical_runs_give_no_importance() -> None:
    found = parameter_importance(["lr"], [{"lr": 1.0}] * 20, [float(i) for i in range(20)])
    assert (found.rows, found.note) == ((), "All runs have the same parameters or the same value.")


def test_pure_noise_is_called_a_guess() -> None:
    rng = random.Random(3)
    configs = [{"lr": rng.random(), "beta": rng.random()} for _ in range(40)]
    assert "guess" in parameter_importance(["lr", "beta"], configs, [rng.random() for _ in configs]).note
