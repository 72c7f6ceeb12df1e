"""Distributions over e^x whose numbers are values, for every parameter."""

import pytest

from kto_sweep.errors import Problem
from kto_sweep.search.distribution_forms import FORMS
from kto_sweep.sweep_file.parameters import check_parameters
from kto_sweep.text import show
from kto_sweep.trial import PARAMETERS

BASE = {"model_size": {"value": "tiny"}, "dataset": {"value": "data.jsonl"}}


def problems(name: str, entry: dict[str, object]) -> list[Problem]:
    return list(check_parameters({**BASE, name: entry}, "random").problems)


VALUES = {
    "learning_rate": [(1e-6, 1e-4), (1e-4, 1e-3)],
    "batch_size": [(4, 32), (8, 64)],
    "beta": [(0.01, 0.5), (0.05, 1.0)],
    "rho": [(0.8, 1.6), (0.5, 2.0)],
    "desirable_weight": [(0.5, 2.0)],
    "undesirable_weight": [(0.5, 2.0)],
    "epochs": [(0.5, 3.0), (1, 3)],
    "max_steps": [(100, 600)],
    "max_length": [(256, 700)],
    "warmup_ratio": [(0.01, 0.3)],
    "weight_decay": [(0.001, 0.1), (0, 0.1)],
    "max_grad_norm": [(0.5, 2.0)],
    "seed": [(1, 40)],
    "lora_r": [(8, 64)],
    "lora_alpha": [(8, 64), (16, 32)],
    "lora_dropout": [(0.01, 0.2)],
    "eval_fraction": [(0.05, 0.3)],
    "eval_steps": [(10, 100)],
}
"""For each numeric parameter ranges that people search."""


def test_every_numeric_parameter_has_a_case() -> None:
    numeric = {name for name, known in PARAMETERS.items() if "number" in known.type.description}
    assert numeric == set(VALUES)


@pytest.mark.parametrize("distribution", ["log_uniform", "q_log_uniform"])
@pytest.mark.parametrize(
    ("name", "ends"), [(name, ends) for name, all_ends in VALUES.items() for ends in all_ends]
)
def test_values_as_ends_are_refused_with_the_form_for_values(
    name: str, ends: tuple[float, float], distribution: str
) -> None:
    low, high = ends
    (problem,) = problems(name, {"distribution": distribution, "min": low, "max": high})
    assert problem.hint.startswith(f"distribution: {distribution}_values")
    assert problem.what.startswith(f"min {show(low)} and max {show(high)} of {distribution} are exponents")


def test_the_message_shows_the_values_that_would_be_drawn() -> None:
    (problem,) = problems("beta", {"distribution": "log_uniform", "min": 0.01, "max": 0.5})
    assert str(problem) == (
        "parameters.beta.distribution: min 0.01 and max 0.5 of log_uniform are exponents: they give 1.01 to "
        "1.65\n  log_uniform draws x and uses e^x.\n  Hint: distribution: log_uniform_values"
    )


@pytest.mark.parametrize(
    ("name", "distribution", "low", "high"),
    [
        ("learning_rate", "log_uniform", -14, -9),
        ("learning_rate", "inv_log_uniform", 9, 14),
        ("beta", "log_uniform", -4.6, 0.7),
        ("beta", "log_uniform", -3, 0),
        ("batch_size", "q_log_uniform", 1.4, 4.2),
        ("batch_size", "q_log_uniform", 2, 5),
        ("lora_r", "q_log_uniform", 1.4, 4.2),
        ("lora_alpha", "log_uniform", 2, 4.8),
        ("max_length", "q_log_uniform", 5.5, 8.3),
        ("rho", "log_uniform", -0.3, 0.3),
        ("weight_decay", "log_uniform", -9, -2),
    ],
)
def test_exponents_as_ends_are_accepted(name: str, distribution: str, low: float, high: float) -> None:
    assert problems(name, {"distribution": distribution, "min": low, "max": high}) == []


@pytest.mark.parametrize(
    ("name", "mu", "hint"),
    [
        ("learning_rate", 1e-5, "mu: -11.51, for a median of 1.0e-05"),
        ("beta", 0.1, "mu: -2.303, for a median of 0.1"),
        ("batch_size", 8, "mu: 2.079, for a median of 8"),
        ("lora_r", 16, "mu: 2.773, for a median of 16"),
    ],
)
def test_the_median_as_mu_is_refused_with_its_logarithm(name: str, mu: float, hint: str) -> None:
    (problem,) = problems(name, {"distribution": "q_log_normal", "mu": mu, "sigma": 0.5, "q": 1})
    assert problem.hint == hint


@pytest.mark.parametrize(("name", "mu"), [("learning_rate", -11.5), ("beta", -2.3), ("lora_alpha", 3.4)])
def test_the_logarithm_of_the_median_as_mu_is_accepted(name: str, mu: float) -> None:
    assert problems(name, {"distribution": "log_normal", "mu": mu, "sigma": 0.5}) == []


def test_forms_for_values_have_the_names_of_the_hints() -> None:
    exponents = [name for name in FORMS if name.endswith("log_uniform")]
    assert {f"{name}_values" for name in exponents} <= set(FORMS)
