"""The Bayesian search as a pure function."""

import math
import random
import statistics
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kto_sweep.search import bayes
from kto_sweep.search.axes import cube_of
from kto_sweep.search.bayes import Observation, next_config
from kto_sweep.search.space import Space
from kto_sweep.search.space_parser import parse_space

MIXED = {
    "lr": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-3},
    "o": {"parameters": {"batch": {"values": [4, 8, 16]}, "kind": {"values": ["a", "b", None]}}},
    "warmup": {"distribution": "q_uniform", "min": 0.0, "max": 0.5, "q": 0.1},
    "steps": {"min": 10, "max": 1000},
    "noise": {"distribution": "normal", "mu": 0, "sigma": 1},
    "fixed": {"value": "x"},
}
PLANE = {"x": {"min": 0.0, "max": 1.0}, "y": {"min": 0.0, "max": 1.0}}


def space(parameters: dict[str, Any]) -> Space:
    parsed, problems = parse_space(parameters)
    assert parsed is not None, problems
    return parsed


def search(
    parameters: dict[str, Any], loss: Any, trials: int, seed: int, maximize: bool = False
) -> list[Observation]:
    """The observations of one agent after this many trials."""
    searched = space(parameters)
    observations: list[Observation] = []
    for _ in range(trials):
        config = next_config(searched, observations, maximize=maximize, seed=seed)
        observations.append(Observation(config, loss(config)))
    return observations


def bowl(config: dict[str, Any]) -> float:
    """0 at (0.7, 0.2)."""
    return float((config["x"] - 0.7) ** 2 + (config["y"] - 0.2) ** 2)


def values(observations: list[Observation]) -> list[float]:
    return [observation.value for observation in observations if observation.value is not None]


@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_suggestions_lie_in_the_space_for_any_observations(data: st.DataObject) -> None:
    """Values that no metric should have, failures, pending trials, configurations of another space."""
    searched = space(MIXED)
    rng = random.Random(data.draw(st.integers(0, 1000)))
    value = (
        st.none()
        | st.floats(allow_nan=True, allow_infinity=True)
        | st.sampled_from([0.0, 1.0, 1e300, -1e300])
    )
    observations = [
        Observation(searched.sample(rng), data.draw(value), data.draw(st.booleans()))
        for _ in range(data.draw(st.integers(0, 12)))
    ]
    observations.append(Observation({"lr": "high"}, 1.0))
    config = next_config(searched, observations, seed=3)
    assert cube_of(searched).point(config) is not None
    assert config["fixed"] == "x"
    assert set(config["o"]) == {"batch", "kind"}


def test_equal_arguments_give_equal_suggestions_and_another_seed_another() -> None:
    observations = search(PLANE, bowl, 5, seed=1)
    searched = space(PLANE)
    assert next_config(searched, observations, seed=1) == next_config(searched, observations, seed=1)
    assert next_config(searched, [], seed=1) != next_config(searched, [], seed=2)


def test_better_than_chance_in_the_median_of_ten_seeds() -> None:
    searched = space(PLANE)
    ours, chance = [], []
    for seed in range(10):
        ours.append(min(values(search(PLANE, bowl, 10, seed))))
        rng = random.Random(seed)
        chance.append(min(bowl(searched.sample(rng)) for _ in range(12)))
    assert statistics.median(ours) < statistics.median(chance) / 4


def test_maximized_metric() -> None:
    observations = search(PLANE, lambda config: -bowl(config), 12, seed=0, maximize=True)
    assert max(values(observations)) > -0.01


def test_trials_that_diverge_do_not_hide_the_differences_between_the_others() -> None:
    """Losses of 1e9 beyond a cliff that is next to the best, against differences of 0.1."""

    def cliff(config: dict[str, Any]) -> float:
        return 1e9 if config["x"] > 0.6 else bowl(config)  # 0.01 at best

    best = [min(values(search(PLANE, cliff, 12, seed))) for seed in range(5)]
    assert statistics.median(best) < 0.08


def test_four_concurrent_agents_get_different_and_distant_trials() -> None:
    searched = space(PLANE)
    observations = search(PLANE, bowl, 6, seed=0)
    asked: list[dict[str, Any]] = []
    for _ in range(4):
        pending = [Observation(config, None, pending=True) for config in asked]
        asked.append(next_config(searched, observations + pending, seed=0))
    places = [(config["x"], config["y"]) for config in asked]
    gaps = [math.dist(a, b) for i, a in enumerate(places) for b in places[:i]]
    assert min(gaps) > 0.02
    alone = next_config(searched, observations, seed=0)
    assert asked[0] == alone
    assert max(gaps) > 0.1


def test_four_agents_at_the_start_get_points_that_spread() -> None:
    searched = space(PLANE)
    asked: list[dict[str, Any]] = []
    for _ in range(4):
        asked.append(next_config(searched, [Observation(c, None, pending=True) for c in asked], seed=5))
    assert len({(config["x"] < 0.5, config["y"] < 0.5) for config in asked}) >= 3


def test_more_agents_than_losses_continue_the_start() -> None:
    """The ninth start point while losses are missing; with a loss per axis, the process suggests one."""
    searched = space({name: {"min": 0.0, "max": 1.0} for name in "abc"})
    configs: list[dict[str, Any]] = []
    for _ in range(9):
        configs.append(next_config(searched, [Observation(c, None, pending=True) for c in configs], seed=5))
    for known in (2, 3):
        losses = [0.3, 0.1, 0.2][:known] + [None] * (8 - known)
        observations = [
            Observation(c, loss, pending=loss is None) for c, loss in zip(configs, losses, strict=False)
        ]
        assert (next_config(searched, observations, seed=5) == configs[8]) == (known < 3)


def test_finite_space_is_exhausted_without_repetition_and_then_repeated() -> None:
    parameters = {"a": {"values": [1, 2, 3]}, "b": {"values": ["x", "y"]}}
    observations = search(parameters, lambda config: config["a"] + (config["b"] == "x"), 7, seed=0)
    assert len({str(observation.config) for observation in observations[:6]}) == 6


def test_failed_and_pending_trials_are_not_repeated_either() -> None:
    parameters = {"a": {"values": [1, 2, 3, 4]}}
    observations = [
        Observation({"a": 1}, None),
        Observation({"a": 2}, None, pending=True),
        Observation({"a": 4}, 1.0),
    ]
    assert next_config(space(parameters), observations, seed=0) == {"a": 3}


def test_space_without_anything_to_search() -> None:
    assert next_config(space({"a": {"value": 1}}), [], seed=0) == {"a": 1}


def test_prior_trials_are_used_from_the_first_suggestion() -> None:
    """After eight trials around the optimum, the first point is not a start point, but near the best."""
    rng = random.Random(0)
    configs = [{"x": rng.random(), "y": rng.random()} for _ in range(12)]
    configs += [{"x": 0.7 + dx, "y": 0.2 + dy} for dx in (-0.1, 0.1) for dy in (-0.1, 0.1)]
    config = next_config(space(PLANE), [Observation(c, bowl(c)) for c in configs], seed=0)
    assert bowl(config) < 0.02


def test_many_trials_are_sampled_and_the_best_ones_stay() -> None:
    losses = [((number / 1000,), (float(number),)) for number in range(1000)]
    chosen = bayes._subset(losses, random.Random(0))
    assert len(chosen) == len(set(chosen)) == bayes.MAX_OBSERVED
    assert set(losses[:100]) <= set(chosen)


def test_scale_of_losses() -> None:
    """0 for the best, 1 for the median; a diverged trial is clipped."""
    assert bayes._scaled([2.0, 1.0, 3.0, 1e9, 2.5]) == pytest.approx([1 / 1.5, 0, 2 / 1.5, 3, 1])
    assert bayes._scaled([1.0, 1.0, 1.0, 1.0, 5.0]) == [0, 0, 0, 0, 1]
    assert bayes._scaled([7.0, 7.0]) == [0, 0]
    assert bayes._scaled([-1.7e308, 1.7e308]) == [0, 1]


def test_torch_is_imported_by_the_first_suggestion_after_the_start_and_not_before() -> None:
    code = """
import sys
import kto_sweep.server.main
from kto_sweep.search.bayes import Observation, next_config
from kto_sweep.search.space_parser import parse_space
space, _ = parse_space({"x": {"min": 0.0, "max": 1.0}})
next_config(space, [Observation({"x": 0.1}, 1.0)], seed=0)
heavy = {"torch", "optuna"}
assert not heavy & set(sys.modules)
next_config(space, [Observation({"x": x / 10}, x) for x in range(8)], seed=0)
assert heavy <= set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_warm_up_imports_everything_that_later_suggestions_need() -> None:
    code = """
import sys
from kto_sweep.search import bayes
from kto_sweep.search.space_parser import parse_space
bayes.warm_up()
before = set(sys.modules)
space, _ = parse_space({"lr": {"min": 0.0, "max": 1.0}, "kind": {"values": ["a", "b"]}})
seen = [bayes.Observation({"lr": x / 10, "kind": "a"}, x) for x in range(8)]
bayes.next_config(space, [], seed=0)
bayes.next_config(space, seen, seed=0)
assert not set(sys.modules) - before, set(sys.modules) - before
"""
    subprocess.run([sys.executable, "-c", code], check=True)
