"""Configurations as points of the unit cube, and back."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kto_sweep.search.axes import Cube, Levels, Scale, cube_of
from kto_sweep.search.distributions import value_key
from kto_sweep.search.space import Space
from kto_sweep.search.space_parser import parse_space

ENTRIES: dict[str, dict[str, object]] = {
    "categorical": {"values": ["a", 1, True, None, [1, 2], {"b": 1.5}]},
    "categorical of numbers": {"values": [32, 8, 16.5]},
    "categorical_w_probabilities": {"values": ["a", "b", "c"], "probabilities": [0.7, 0.3, 0.0]},
    "int_uniform": {"min": -3, "max": 4},
    "int_uniform, long": {"min": 1, "max": 100_000},
    "uniform": {"min": -2.0, "max": 3.5},
    "q_uniform": {"distribution": "q_uniform", "min": 0.05, "max": 0.95, "q": 0.1},
    "log_uniform": {"distribution": "log_uniform", "min": -14, "max": -2},
    "log_uniform_values": {"distribution": "log_uniform_values", "min": 5e-7, "max": 1e-3},
    "inv_log_uniform": {"distribution": "inv_log_uniform", "min": 1, "max": 9},
    "inv_log_uniform_values": {"distribution": "inv_log_uniform_values", "min": 1e-3, "max": 2},
    "q_log_uniform": {"distribution": "q_log_uniform", "min": 0, "max": 5, "q": 2},
    "q_log_uniform_values": {"distribution": "q_log_uniform_values", "min": 4, "max": 500, "q": 4},
    "normal": {"distribution": "normal", "mu": 1, "sigma": 3},
    "q_normal": {"distribution": "q_normal", "mu": 10, "sigma": 3, "q": 0.5},
    "log_normal": {"distribution": "log_normal", "mu": -3, "sigma": 1},
    "q_log_normal": {"distribution": "q_log_normal", "mu": 2, "sigma": 1, "q": 1},
    "beta": {"distribution": "beta", "a": 2, "b": 5},
    "q_beta": {"distribution": "q_beta", "a": 2, "b": 2, "q": 0.25},
}
"""Every distribution that varies; the numbers are not round on purpose."""


def space(**parameters: object) -> Space:
    parsed, problems = parse_space(parameters)
    assert parsed is not None, problems
    return parsed


def cube(**parameters: object) -> Cube:
    return cube_of(space(**parameters))


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@settings(max_examples=30, deadline=None)
@given(place=st.floats(1e-6, 1 - 1e-6))
def test_values_round_trip_through_their_coordinates(entry: dict[str, object], place: float) -> None:
    (axis,) = cube(p=entry).axes
    value = axis.value(place)
    coordinate = axis.coordinate(value)
    assert coordinate is not None
    assert 0 <= coordinate <= 1
    again = axis.value(coordinate)
    if isinstance(axis, Scale) and not axis.distribution.cells() and isinstance(value, float):
        assert again == pytest.approx(value, rel=1e-5)
    else:
        assert value_key(again) == value_key(value)


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_every_random_draw_is_a_point(entry: dict[str, object]) -> None:
    searched = space(p=entry)
    rng = random.Random(1)
    assert all(cube_of(searched).point(searched.sample(rng)) is not None for _ in range(50))


def test_nested_parameters_and_fixed_ones() -> None:
    result = cube(
        a={"value": 7},
        o={"parameters": {"n": {"values": [1, 2]}, "m": {"parameters": {"x": {"min": 0.0, "max": 1.0}}}}},
    )
    point = result.point({"a": 7, "o": {"n": 2, "m": {"x": 0.25}}, "other": 1})
    assert point == (0.25, 0.75)
    assert result.config(point) == {"a": 7, "o": {"n": 2, "m": {"x": 0.25}}}


@pytest.mark.parametrize(
    "config", [{}, {"x": 2.0}, {"x": True}, {"x": "0.5"}, {"x": None}, {"x": {"y": 1}}, {"y": 0.5}]
)
def test_configuration_of_another_space_has_no_point(config: dict[str, object]) -> None:
    assert cube(x={"min": 0.0, "max": 1.0}).point(config) is None


def test_numbers_are_ordered_and_names_are_not() -> None:
    numbers, names = cube(a={"values": [32, 8, 16]}, b={"values": ["x", "y"]}).axes
    assert numbers == Levels((8, 16, 32), ordered=True)
    assert names == Levels(("x", "y"), ordered=False)


def test_repeated_values_and_values_of_probability_zero_are_not_levels() -> None:
    (axis,) = cube(a={"values": [4, 4.0, 8]}).axes
    assert axis == Levels((4, 8), ordered=True)
    (axis,) = cube(a={"values": ["x", "y", "z"], "probabilities": [0.5, 0.5, 0.0]}).axes
    assert axis == Levels(("x", "y"), ordered=False)


def test_all_points_of_a_finite_space() -> None:
    result = cube(
        a={"min": 1, "max": 3},
        b={"values": ["x", "y"]},
        c={"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.5},
    )
    points = list(result.points(18) or [])
    assert len(points) == len({result.key(point) for point in points}) == 18
    assert result.points(17) is None


def test_an_infinite_space_has_no_list_of_points() -> None:
    assert cube(a={"values": [1, 2]}, x={"min": 0.0, "max": 1.0}).points(10**6) is None
    assert cube(a={"min": 0, "max": 10**12}).points(1000) is None
