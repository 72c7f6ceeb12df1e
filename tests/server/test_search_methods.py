"""The search methods as pure functions: grid, random, hyperband."""

import math
import random
from collections.abc import Iterable, Mapping
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kto_sweep.search import grid, hyperband
from kto_sweep.search.space import Space
from kto_sweep.search.space_parser import parse_space


def space(**parameters: object) -> Space:
    parsed, problems = parse_space(parameters)
    assert parsed is not None, problems
    return parsed


def next_config(searched: Space, tried: Iterable[Mapping[str, object]]) -> dict[str, object] | None:
    """The first combination that is not among `tried`; None when all are."""
    found = grid.next_cell(searched, {grid.cell_key(searched, config) for config in tried})
    return None if found is None else found[1]


def walk(searched: Space) -> list[dict[str, object]]:
    """The whole grid, cell by cell."""
    tried: list[dict[str, object]] = []
    while (found := next_config(searched, tried)) is not None:
        tried.append(found)
    return tried


def test_grid_visits_names_in_order_the_last_one_fastest() -> None:
    searched = space(b={"values": ["x", "y"]}, a={"min": 1, "max": 2}, c={"value": 7})
    assert walk(searched) == [{"a": a, "b": b, "c": 7} for a, b in product((1, 2), ("x", "y"))]


def test_grid_keeps_trials_together_that_can_be_trained_together() -> None:
    """In alphabetical order, model_size would vary fastest and each trial would load another base model."""
    searched = space(
        learning_rate={"values": [1, 2]},
        model={"parameters": {"size": {"values": ["1.5b", "0.5b"]}}},
        max_length={"values": [8, 16]},
        beta={"values": [0.1]},
    )
    visited = [
        (found["model"]["size"], found["max_length"], found["learning_rate"]) for found in walk(searched)
    ]
    assert visited == list(product(("1.5b", "0.5b"), (8, 16), (1, 2)))
    assert [found for _, found in grid.cells(searched)] == walk(searched)


def test_grid_of_nested_parameters() -> None:
    searched = space(o={"parameters": {"n": {"values": [1, 2]}, "m": {"values": [3]}}})
    assert walk(searched) == [{"o": {"m": 3, "n": 1}}, {"o": {"m": 3, "n": 2}}]


def test_grid_of_steps_leaves_out_the_end() -> None:
    searched = space(a={"distribution": "q_uniform", "min": 0.0, "max": 0.4, "q": 0.1})
    assert walk(searched) == [{"a": 0.0}, {"a": 0.1}, {"a": 0.2}, {"a": 0.3}]


def test_grid_takes_3_and_3_point_0_for_the_same_and_ignores_unknown_keys() -> None:
    searched = space(a={"values": [3, 4]})
    assert next_config(searched, [{"a": 3.0, "other": 1}]) == {"a": 4}


def test_grid_tells_1_from_true_and_from_text() -> None:
    searched = space(a={"values": [1, True, "1"]})
    assert len(walk(searched)) == 3


def test_grid_names_a_repeated_value_once() -> None:
    assert walk(space(a={"values": [1, 1.0, 2]})) == [{"a": 1}, {"a": 2}]


def test_huge_range_of_whole_numbers_costs_nothing() -> None:
    searched = space(a={"min": 0, "max": 10**12})
    assert grid.can_list(searched)
    found = grid.next_cell(searched, set(), 10**9)
    assert found is not None
    assert found[1] == {"a": 10**9}


def test_endless_parameters_make_no_grid() -> None:
    assert not grid.can_list(space(a={"min": 0.0, "max": 1.0}))
    assert not grid.can_list(space(a={"min": 0, "max": 2**64}))
    assert not grid.can_list(space(a={"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 1e-9}))


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), data=st.data())
def test_grid_gives_every_cell_exactly_once_whatever_was_tried_before(
    sizes: list[int], data: st.DataObject
) -> None:
    searched = space(**{f"p{i}": {"values": list(range(size))} for i, size in enumerate(sizes)})
    everything = [
        dict(zip((f"p{i}" for i in range(len(sizes))), cell, strict=True))
        for cell in product(*map(range, sizes))
    ]
    tried = data.draw(st.lists(st.sampled_from(everything), unique_by=str))
    done = list(tried)
    while (found := next_config(searched, done)) is not None:
        assert found not in done
        done.append(found)
    assert sorted(map(str, done)) == sorted(map(str, everything))


def test_random_draws_follow_their_distributions() -> None:
    """Means of 4000 draws within 5 standard errors."""
    searched = space(
        u={"min": 0.0, "max": 2.0},
        n={"distribution": "normal", "mu": 3.0, "sigma": 0.5},
        c={"values": [0, 1], "probabilities": [0.25, 0.75]},
        l={"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-2},
        fixed={"value": "x"},
    )
    rng = random.Random(1)
    drawn = [searched.sample(rng) for _ in range(4000)]
    assert {config["fixed"] for config in drawn} == {"x"}
    expected = {"u": (1.0, 2 / math.sqrt(12)), "n": (3.0, 0.5), "c": (0.75, math.sqrt(0.1875))}
    for name, (mean, deviation) in expected.items():
        found = sum(config[name] for config in drawn) / len(drawn)
        assert abs(found - mean) < 5 * deviation / math.sqrt(len(drawn))
    logs = [math.log10(config["l"]) for config in drawn]
    assert abs(sum(logs) / len(logs) + 4) < 5 * (4 / math.sqrt(12)) / math.sqrt(len(logs))


def test_random_draws_are_repeated_by_the_same_seed() -> None:
    searched = space(u={"min": 0.0, "max": 1.0})
    assert searched.sample(random.Random(3)) == searched.sample(random.Random(3))


@pytest.mark.parametrize(
    ("section", "bands"),
    [
        ({"max_iter": 27, "s": 2}, (3, 9)),
        ({"max_iter": 27, "s": 9}, (1, 3, 9)),
        ({"max_iter": 100, "s": 3, "eta": 2}, (12, 25, 50)),
        ({"max_iter": 100, "s": 64, "eta": 50}, (2,)),
    ],
)
def test_bands_of_the_max_iter_form(section: dict[str, int], bands: tuple[int, ...]) -> None:
    assert hyperband.parse_hyperband({"type": "hyperband", **section}).bands == bands


def test_bands_of_the_min_iter_form_grow_by_eta() -> None:
    assert hyperband.parse_hyperband({"type": "hyperband", "min_iter": 3}).bands[:4] == (3, 9, 27, 81)
    assert hyperband.parse_hyperband({"type": "hyperband", "min_iter": 3, "eta": 1e200}).bands == (3,)


@pytest.mark.parametrize(
    "section",
    [
        {"type": "median"},
        {"type": "hyperband"},
        {"type": "hyperband", "max_iter": 27},
        {"type": "hyperband", "max_iter": 2, "s": 1},
        {"type": "hyperband", "min_iter": 0},
        {"type": "hyperband", "min_iter": 3, "eta": 1},
        {"type": "hyperband", "min_iter": 3, "strict": "yes"},
        {"type": "hyperband", "min_iter": float("nan")},
        {"type": "hyperband", "min_iter": 10**400},
        {"type": "hyperband", "max_iter": 10**300, "s": 2, "eta": 1e200},
    ],
)
def test_rules_that_cannot_be(section: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="early_terminate"):
        hyperband.parse_hyperband(section)


def judge(histories: list[list[float]], number: int, **section: object) -> bool:
    rule = hyperband.parse_hyperband({"type": "hyperband", "min_iter": 2, "eta": 2, **section})

    def values_at(band: int) -> list[float]:
        return [history[band - 1] for history in histories if len(history) >= band]

    return hyperband.should_stop(rule, histories[number], values_at)


def test_hyperband_worked_example() -> None:
    """Band 2 of four runs: 1, 2, 3, 4; eta 2 makes the threshold the third of them, 3: only 4 is above."""
    histories = [[9.0, 1.0], [9.0, 2.0], [9.0, 3.0], [9.0, 4.0]]
    assert [judge(histories, number) for number in range(4)] == [False, False, False, True]


def test_only_run_and_one_of_two_are_never_stopped() -> None:
    assert not judge([[5.0, 5.0]], 0)
    assert not judge([[5.0, 5.0], [1.0, 1.0]], 0)


def test_without_strict_the_best_value_so_far_counts() -> None:
    histories = [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [0.5, 9.0]]
    assert judge(histories, 3)
    assert not judge(histories, 3, strict=False)


def test_maximized_metric_turns_the_verdict_round() -> None:
    rule = hyperband.parse_hyperband({"type": "hyperband", "min_iter": 1, "eta": 2})
    values = [1.0, 2.0, 3.0, 4.0]
    stopped = [hyperband.should_stop(rule, [v], lambda band: values, maximize=True) for v in values]
    assert stopped == [True, False, False, False]


def test_batch_that_crosses_two_bands_is_judged_at_both() -> None:
    """Bands 2 and 4: the bad run is above the threshold at 2; at 4 it is alone."""
    rule = hyperband.parse_hyperband({"type": "hyperband", "min_iter": 2, "eta": 2})
    at = {2: [1.0, 2.0, 9.0], 4: [9.0]}
    history = [9.0] * 5
    assert not hyperband.should_stop(rule, history, at.__getitem__)
    assert not hyperband.should_stop(rule, history, at.__getitem__, judged=3)
    assert hyperband.should_stop(rule, history, at.__getitem__, judged=1)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(1.1, 5))
def test_best_run_is_never_stopped(values: list[float], eta: float) -> None:
    rule = hyperband.HyperbandRule((1,), eta, True)
    assert not hyperband.should_stop(rule, [min(values)], lambda band: values)
