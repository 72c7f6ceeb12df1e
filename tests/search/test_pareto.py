"""The Pareto front, and the Bayesian search of one."""

import statistics

from hypothesis import given
from hypothesis import strategies as st

from kto_sweep.search.bayes import Observation, next_config
from kto_sweep.search.objectives import pareto_front
from kto_sweep.search.replicates import pooled
from kto_sweep.search.space_parser import parse_space

PLANE, _ = parse_space({"x": {"min": 0.0, "max": 1.0}, "y": {"min": 0.0, "max": 1.0}})
ROWS = st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, 3.0])] * 3), max_size=12)


def beats(one, other):
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


@given(ROWS)
def test_the_front_is_what_nothing_dominates(rows):
    unbeaten = [place for place, row in enumerate(rows) if not any(beats(other, row) for other in rows)]
    assert pareto_front(rows) == unbeaten


def test_a_search_with_two_objectives_spreads_along_their_front():
    """Losses are the squared distances from (0.2, 0.5) and (0.8, 0.5); the front is the line between."""

    def losses(config):
        return [(config["x"] - at) ** 2 + (config["y"] - 0.5) ** 2 for at in (0.2, 0.8)]

    observations = []
    for _ in range(14):
        config = next_config(PLANE, observations, seed=0)
        value, cost = losses(config)
        observations.append(Observation(config, value, costs=(cost,)))
    configs = [observation.config for observation in observations[4:]]
    assert statistics.median(abs(config["y"] - 0.5) for config in configs) < 0.15
    assert min(config["x"] for config in configs) < 0.4
    assert max(config["x"] for config in configs) > 0.6


def test_a_maximized_metric_with_several_objectives_and_pending_trials():
    observations = [Observation({"x": x / 8, "y": 0.5}, x / 8, costs=(1.0,)) for x in range(8)]
    observations.append(Observation({"x": 0.99, "y": 0.4}, None, pending=True))
    config = next_config(PLANE, observations, maximize=True, seed=1)
    assert config == next_config(PLANE, observations, maximize=True, seed=1)
    assert config["x"] > 0.5


def test_seeds_are_pooled_in_each_objective():
    (one,) = pooled(
        [
            Observation({"x": 1, "seed": 1}, 1.0, costs=(10.0,)),
            Observation({"x": 1, "seed": 2}, 3.0, costs=(30.0,)),
            Observation({"x": 1, "seed": 3}, None, pending=True),
        ],
        PLANE,
    )
    assert (one.value, one.costs, one.pending) == (2.0, (20.0,), False)
