"""Which configuration and seed comes next, and what a Bayesian search sees of several seeds."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kto_sweep.search.bayes import Observation
from kto_sweep.search.replicates import next_replicate, pooled
from kto_sweep.search.space_parser import parse_space

SEEDS = (42, 43, 44)
SPACE, _ = parse_space({"x": {"values": [1, 2, 3]}, "seed": {"values": list(SEEDS)}, "beta": {"value": 0.1}})


@given(st.lists(st.sampled_from("abc"), max_size=6))
def test_each_choice_gets_all_its_seeds_before_the_next(choices):
    chosen = []
    for letter in choices:
        assert next_replicate(chosen, SEEDS) is None
        chosen.append({"x": letter, "seed": 42})
        while due := next_replicate(chosen, SEEDS):
            assert due["x"] == letter
            chosen.append(due)
    expected = Counter((letter, seed) for letter in choices for seed in SEEDS)
    assert Counter((config["x"], config["seed"]) for config in chosen) == expected


@given(st.permutations([(letter, seed) for letter in "ab" for seed in SEEDS]), st.integers(1, 6))
def test_a_deleted_run_is_the_next_one(runs, kept):
    chosen = [{"x": letter, "seed": seed} for letter, seed in runs[:kept]]
    while due := next_replicate(chosen, SEEDS):
        chosen.append(due)
    assert Counter((config["x"], config["seed"]) for config in chosen) == {
        (letter, seed): 1 for letter in {letter for letter, _ in runs[:kept]} for seed in SEEDS
    }


def test_the_value_of_a_configuration_is_the_mean_of_its_seeds():
    observations = pooled(
        [
            Observation({"x": 1, "seed": 42}, 1.0),
            Observation({"x": 2, "seed": 42}, None, pending=True),
            # A prior run, whose configuration has more than the search chose.
            Observation({"x": 1.0, "seed": 43, "beta": 0.1, "_device": "gpu 1"}, 2.0),
            Observation({"x": 1, "seed": 44}, None, pending=True),
            Observation({"x": 3, "seed": 42}, None),
        ],
        SPACE,
    )
    assert [
        (observation.config["x"], observation.value, observation.pending) for observation in observations
    ] == [
        (1, 1.5, False),
        (2, None, True),
        (3, None, False),
    ]
