"""Distributions against their formulas, their round trips, and what parse_space accepts and rejects."""

import json
import math
from typing import Any

import pytest
import scipy.stats
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kto_sweep.search.distributions import Distribution, value_key
from kto_sweep.search.space import Space
from kto_sweep.search.space_parser import parse_space
from kto_sweep.text import number_from_text


def space_of(**parameters: object) -> Space:
    space, problems = parse_space(parameters)
    assert problems == []
    assert space is not None
    return space


def distribution(**entry: object) -> Distribution:
    return space_of(x=entry).parameters[0].distribution


def problems_of(**parameters: object) -> list[str]:
    space, problems = parse_space(parameters)
    assert space is None
    return [problem.one_line for problem in problems]


ENTRIES: dict[str, dict[str, Any]] = {
    "constant": {"value": "adamw"},
    "categorical": {"values": [8, 16, 32]},
    "categorical_w_probabilities": {"values": ["a", "b", "c"], "probabilities": [0.2, 0.0, 0.8]},
    "int_uniform": {"min": 3, "max": 9},
    "uniform": {"min": -1.0, "max": 2.5},
    "q_uniform": {"min": 0.05, "max": 1.0, "q": 0.1},
    "log_uniform": {"min": -9, "max": -2},
    "log_uniform_values": {"min": 5e-7, "max": 1e-4},
    "inv_log_uniform": {"min": 2, "max": 9},
    "inv_log_uniform_values": {"min": 5e-7, "max": 1e-4},
    "q_log_uniform": {"min": 1, "max": 5, "q": 4},
    "q_log_uniform_values": {"min": 4, "max": 64, "q": 4},
    "normal": {"mu": 3.0, "sigma": 0.5},
    "q_normal": {"mu": 0.0, "sigma": 20.0, "q": 2},
    "log_normal": {"mu": -11.0, "sigma": 0.7},
    "q_log_normal": {"mu": 3.0, "sigma": 0.7, "q": 1},
    "beta": {"a": 2.0, "b": 5.0},
    "q_beta": {"a": 2.0, "b": 5.0, "q": 0.05},
}
ROUND_TRIP = {name: entry for name, entry in ENTRIES.items() if name != "constant"}
REFERENCE = {  # scipy's own frozen distributions, for the families that it has
    "uniform": scipy.stats.uniform(-1.0, 3.5),
    "log_uniform_values": scipy.stats.loguniform(5e-7, 1e-4),
    "log_uniform": scipy.stats.loguniform(math.exp(-9), math.exp(-2)),
    "inv_log_uniform": scipy.stats.loguniform(math.exp(-9), math.exp(-2)),
    "inv_log_uniform_values": scipy.stats.loguniform(5e-7, 1e-4),
    "normal": scipy.stats.norm(3.0, 0.5),
    "log_normal": scipy.stats.lognorm(0.7, scale=math.exp(-11)),
    "beta": scipy.stats.beta(2.0, 5.0),
    "int_uniform": scipy.stats.randint(3, 10),
}


@pytest.mark.parametrize("name", ENTRIES)
@given(u=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_value_is_plain_json_and_round_trips(name: str, u: float) -> None:
    parsed = distribution(distribution=name, **ENTRIES[name])
    value = parsed.ppf(u)
    assert type(value) in (int, float, str)
    coordinate = parsed.cdf(value)
    assert 0 <= coordinate <= 1
    if isinstance(value, float):
        assert parsed.ppf(coordinate) == pytest.approx(value, rel=1e-6, abs=1e-12)
    else:
        assert parsed.ppf(coordinate) == value
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize("name", REFERENCE)
@given(u=st.floats(0.0005, 0.9995))
@settings(max_examples=60, deadline=None)
def test_values_follow_the_textbook_distribution(name: str, u: float) -> None:
    if name == "int_uniform" and abs(u * 7 - round(u * 7)) < 1e-9:
        return  # at the edge between two whole numbers, either is correct
    parsed = distribution(distribution=name, **ENTRIES[name])
    assert parsed.ppf(u) == pytest.approx(REFERENCE[name].ppf(u), rel=1e-9)


@pytest.mark.parametrize("name", ROUND_TRIP)
def test_ends_of_the_unit_interval_give_finite_values(name: str) -> None:
    parsed = distribution(distribution=name, **ENTRIES[name])
    if all(isinstance(value, int | float) for value in parsed.extremes()):
        assert math.isfinite(parsed.ppf(0.0))
        assert math.isfinite(parsed.ppf(1.0))


def test_log_uniform_values_reaches_its_ends_exactly() -> None:
    parsed = distribution(distribution="log_uniform_values", min=5e-7, max=1e-4)
    assert parsed.extremes() == (5e-7, 1e-4)
    assert parsed.ppf(0.5) == pytest.approx(math.sqrt(5e-7 * 1e-4))


def test_q_makes_multiples_and_whole_numbers_when_it_is_whole() -> None:
    whole = distribution(distribution="q_log_uniform_values", min=4, max=64, q=4)
    assert {type(whole.ppf(i / 20)) for i in range(21)} == {int}
    assert {whole.ppf(i / 20) % 4 for i in range(21)} == {0}
    tenths = distribution(distribution="q_uniform", min=0.0, max=1.0, q=0.1)
    assert tenths.ppf(0.3) == 0.3  # and not 3 * 0.1


def test_the_coordinate_of_a_discrete_value_is_the_middle_of_its_interval() -> None:
    assert distribution(values=[8, 16, 32, 64]).cdf(16) == pytest.approx(0.375)
    assert distribution(min=1, max=4).cdf(4) == pytest.approx(0.875)
    assert distribution(values=["a", "b"], probabilities=[0.2, 0.8]).cdf("b") == pytest.approx(0.6)
    assert distribution(distribution="q_uniform", min=0, max=10, q=5).cdf(0) == pytest.approx(0.125)


def test_a_value_of_probability_zero_is_never_drawn() -> None:
    parsed = distribution(values=["a", "b", "c", "d"], probabilities=[0.0, 0.5, 0.5, 0.0])
    assert {parsed.ppf(i / 100) for i in range(101)} == {"b", "c"}


def test_a_coordinate_of_a_value_of_another_kind_is_rejected() -> None:
    with pytest.raises(ValueError, match="not a number"):
        distribution(min=0.0, max=1.0).cdf("a")
    with pytest.raises(ValueError, match="not in"):
        distribution(values=[1, 2]).cdf(3)


def test_grid_cells() -> None:
    assert distribution(value=3).cells() == (3,)
    assert distribution(values=["b", "a"]).cells() == ("b", "a")
    assert distribution(min=2, max=4).cells() == (2, 3, 4)
    assert distribution(distribution="q_uniform", min=0, max=10, q=5).cells() == (0, 5)
    assert distribution(distribution="q_uniform", min=0.1, max=0.4, q=0.1).cells() == (0.1, 0.2, 0.3)
    for name in set(ENTRIES) - {"constant", "categorical", "int_uniform", "q_uniform"}:
        assert distribution(distribution=name, **ENTRIES[name]).cells() is None


@given(
    low=st.integers(-20, 20),
    length=st.integers(1, 40),
    q=st.sampled_from([1, 2, 0.1, 0.25, 1.5]),
)
def test_the_cell_count_is_the_number_of_cells(low: int, length: int, q: float) -> None:
    parsed = distribution(distribution="q_uniform", min=low, max=low + length, q=q)
    cells = parsed.cells()
    assert cells is not None
    assert len(set(cells)) == parsed.cell_count()
    assert cells[0] == low
    assert cells[-1] < low + length <= cells[-1] + q + 1e-9


def test_grid_size_counts_distinct_trials() -> None:
    assert space_of(lr={"values": [1e-5, 1e-6, 1e-5]}, batch={"values": [8, 8.0, 16]}).grid_size() == 4
    assert space_of(a={"values": [1, True, "1", None]}).grid_size() == 4
    assert space_of(a={"values": [{"r": 8}, {"r": 8.0}, {"r": 16}]}).grid_size() == 2
    assert space_of(a={"value": 1}).grid_size() == 1
    assert space_of(a={"value": 1}, b={"min": 0.0, "max": 1.0}).grid_size() is None
    assert space_of(seed={"min": 0, "max": 10**9}).grid_size() == 10**9 + 1


def test_parameters_come_in_the_order_of_their_nested_names() -> None:
    space = space_of(
        opt={"parameters": {"name": {"values": ["a", "b"]}, "lr": {"value": 1}}},
        batch={"values": [1, 2]},
        seed={"value": 0},
        **{"opt-x": {"value": 1}},
    )
    assert [p.name for p in space.parameters] == ["batch", "opt.lr", "opt.name", "opt-x", "seed"]
    assert [p.name for p in space.searched] == ["batch", "opt.name"]


def test_only_what_varies_is_searched() -> None:
    space = space_of(
        one={"values": [1]},
        same={"values": [2, 2.0]},
        rounded={"distribution": "q_uniform", "min": 0.9, "max": 1.1, "q": 1},
        two={"distribution": "normal"},
    )
    assert [p.name for p in space.searched] == ["two"]


def test_config_nests_groups_and_fills_in_what_is_fixed() -> None:
    space = space_of(
        opt={"parameters": {"deep": {"parameters": {"x": {"values": [1, 2]}}}, "name": {"value": "adamw"}}},
        seed={"value": 7},
    )
    assert space.config({("opt", "deep", "x"): 2}) == {"opt": {"deep": {"x": 2}, "name": "adamw"}, "seed": 7}
    with pytest.raises(KeyError):
        space.config({})


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ({"value": None}, "constant"),
        ({"values": [1, 2]}, "categorical"),
        ({"values": [1, 2], "probabilities": [0.5, 0.5]}, "categorical_w_probabilities"),
        ({"min": 1, "max": 8}, "int_uniform"),
        ({"min": 1.0, "max": 8.0}, "uniform"),
        ({"min": 1, "max": 8, "distribution": "uniform"}, "uniform"),
        ({"distribution": "normal"}, "normal"),
        ({"distribution": "beta"}, "beta"),
    ],
)
def test_the_distribution_is_inferred_as_by_wandb(entry: dict[str, object], name: str) -> None:
    assert distribution(**entry).name == name


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5e-7", 5e-7),
        ("1E6", 1e6),
        ("2E-6", 2e-6),
        (" 8 ", 8),
        ("-.5", -0.5),
        ("8.", 8.0),
        ("+3", 3),
        ("1e999", None),
        ("9" * 400, None),
        ("0x10", None),
        ("1_000", None),
        ("nan", None),
        ("8b", None),
        ("", None),
        ("٣", None),
    ],
)
def test_number_from_text(text: str, number: float | None) -> None:
    assert number_from_text(text) == number
    assert type(number_from_text(text)) is type(number)


def test_text_numbers_are_numbers_in_ranges_and_stay_text_in_values() -> None:
    entry = yaml.safe_load("{min: 5e-7, max: 1e-4, distribution: log_uniform_values}")
    assert entry["min"] == "5e-7"  # as parsed by YAML 1.1
    assert distribution(**entry).extremes() == (5e-7, 1e-4)
    assert distribution(**yaml.safe_load("{min: 5e-7, max: 1e-4}")).name == "uniform"
    assert distribution(values=["5e-7", "1e-7"]).cells() == ("5e-7", "1e-7")
    assert distribution(values=["a", "b"], probabilities=["2e-1", "0.8"]).ppf(0.1) == "a"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (5e-6, "x: 5.0e-06 without value or values. value: 5.0e-06"),
        (
            ["a", "b"],
            'x: ["a", "b"] without value or values. values: [a, b] for one trial each, or value: [a, b] for '
            "all at once",
        ),
        ([1, 2], "values: [1, 2]"),
        ({}, "has no value"),
        ({"vaules": [1]}, "values: instead of vaules:"),
        ({"min": 1}, "add max:"),
        ({"mu": 1.0}, "add distribution: normal"),
        ({"min": 0, "max": 0.5}, "min: 0.0, or add distribution: uniform"),
        ({"min": 1, "max": 8, "q": 2}, "add distribution: q_uniform"),
        ({"min": 8, "max": 1}, "min: 1, max: 8"),
        ({"min": 8, "max": 8}, "value: 8"),
        ({"min": "low", "max": 8}, "x.min: low is not a number"),
        ({"min": True, "max": 8}, "x.min: true is not a number"),
        ({"min": 0.0, "max": float("inf")}, "x.max: inf is not a number"),
        ({"distribution": "log_unifrom", "min": 1, "max": 2}, "log_uniform"),
        ({"distribution": "normal", "min": 1}, "min is not a key of normal"),
        ({"distribution": "uniform", "min": 1}, "uniform without max"),
        ({"distribution": "int_uniform", "min": 1.5, "max": 4}, "1.5 is not a whole number"),
        ({"distribution": "int_uniform", "min": 1, "max": 4.0}, "4.0 is not a whole number. max: 4"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "not exponents"),
        ({"distribution": "log_uniform_values", "min": -16, "max": 9}, "-16 is not above 0"),
        ({"distribution": "log_uniform", "min": 100, "max": 1000}, "log_uniform_values"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}, "0 is not above 0"),
        ({"distribution": "normal", "sigma": -1}, "-1 is not above 0"),
        ({"distribution": "log_normal", "mu": 705}, "too large to compute"),
        ({"values": []}, "[] is not a list of values"),
        ({"values": 5}, "values: [5]"),
        ({"value": 1, "values": [1]}, "values is not a key of constant"),
        ({"values": [1, 2], "probabilities": [1.0]}, "1 probabilities for 2 values"),
        ({"values": [1, 2], "probabilities": [0.5, 0.4]}, "sum to 0.9"),
        ({"values": [1, 2], "probabilities": [1.5, -0.5]}, "not all numbers of 0 or more"),
        ({"value": yaml.safe_load("2024-01-01")}, 'write it in quotes: "2024-01-01"'),
        ({"values": [1, {"a": [float("nan")]}]}, "x.values.1.a.0: nan is not a finite number"),
        ({"parameters": {}}, "x.parameters: {} is not a group of parameters"),
        ({"parameters": {"y": {"value": 1}}, "value": 3}, "x.value: value next to parameters"),
    ],
)
def test_a_problem_says_what_to_type(entry: object, said: str) -> None:
    (problem,) = problems_of(x=entry)
    assert said in problem


def test_a_whole_number_beyond_all_floats_is_not_a_number() -> None:
    (problem,) = problems_of(x={"min": 1, "max": 10**400})
    assert problem.endswith("is not a number")


def test_all_problems_are_reported_at_once_with_their_paths() -> None:
    _, problems = parse_space(
        {"a": {"min": 3, "max": 1}, "b c": {"value": 1}, "d": {"parameters": {"e": {}, "f": {"values": "x"}}}}
    )
    assert [problem.path for problem in problems] == [
        ("parameters", "a", "min"),
        ("parameters", "b c"),
        ("parameters", "d", "parameters", "e"),
        ("parameters", "d", "parameters", "f", "values"),
    ]


def test_names_that_yaml_reads_as_something_else_are_rejected() -> None:
    (problem,) = parse_space(yaml.safe_load("on: {value: 1}"))[1]
    assert problem.what == "true is not a parameter name"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(values=st.lists(JSON, min_size=1, max_size=6))
def test_grid_cells_of_any_json_values_round_trip(values: list[object]) -> None:
    parsed = distribution(values=values)
    for value in values:
        assert value_key(parsed.ppf(parsed.cdf(value))) == value_key(value)
    assert parsed.cell_count() == len({value_key(value) for value in values})
