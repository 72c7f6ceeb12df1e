"""Asynchronous successive halving as pure functions."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kto_sweep.search import asha, hyperband

SECTIONS = st.one_of(
    st.fixed_dictionaries({"min_iter": st.integers(1, 5), "eta": st.sampled_from([1.5, 2, 3, 4])}),
    st.fixed_dictionaries(
        {"max_iter": st.integers(9, 81), "s": st.integers(1, 3), "eta": st.sampled_from([2, 3])}
    ),
)
VALUES = st.lists(st.floats(-10, 10) | st.sampled_from([0.0, 1.0]), max_size=40)


@given(SECTIONS)
def test_bands_are_those_of_hyperband(section):
    rule = asha.parse_asha(section, "asha")
    assert rule.bands == hyperband.parse_hyperband({"type": "hyperband", **section}).bands


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({}, "asha needs min_iter, or max_iter with s"),
        ({"min_iter": 0}, "asha.min_iter is 0; it must be 1 or more"),
        ({"min_iter": 1, "eta": 1}, "asha.eta is 1; it must be above 1"),
        ({"min_iter": 1, "strict": True}, "asha.strict: the keys are min_iter, max_iter, s, eta"),
        ({"max_iter": 1, "s": 1}, "asha has no band of 1 iteration or more"),
    ],
)
def test_invalid_rules_are_reported(section, problem):
    with pytest.raises(ValueError, match=problem):
        asha.parse_asha(section, "asha")


@given(VALUES, st.sampled_from([1.5, 2, 3, 4]), st.booleans())
def test_the_best_are_one_in_eta_and_no_other_is_better(values, eta, maximize):
    standings = list(enumerate(values))
    best = asha.best(standings, eta, maximize=maximize)
    assert len(best) == len(set(best)) == math.floor(len(values) / eta)
    sign = -1 if maximize else 1
    others = [sign * value for run, value in standings if run not in best]
    assert all(sign * values[run] <= min(others) for run in best)


@given(st.integers(0, 10_000), st.integers(1, 30), st.sampled_from([2, 3, 4]))
def test_each_rung_ends_with_the_best_of_those_that_reached_it(seed, trials, eta):
    """Trials with fixed curves in any order: at the end, the best 1/eta of each band have passed it.

    A run that passes early may be overtaken later, so others may have passed too.
    """
    rng = random.Random(seed)
    rule = asha.AshaRule((1, eta, eta**2), eta)
    quality = [rng.random() for _ in range(trials)]
    rungs: dict[int, list[tuple[int, float]]] = {band: [] for band in rule.bands}
    at = dict.fromkeys(range(trials), 0)
    ready, paused, ended = list(range(trials)), {}, set()
    while ready or asha.promotable(rule, paused, rungs.__getitem__):
        promotable = asha.promotable(rule, paused, rungs.__getitem__)
        run = promotable[0] if promotable else ready.pop(rng.randrange(len(ready)))
        if run in paused:
            at[run] = paused.pop(run)
        for band in rule.bands:
            if band > at[run]:
                rungs[band].append((run, quality[run]))
                at[run], pauses = asha.pauses_at(rule, run, at[run], band, rungs.__getitem__)
                if pauses:
                    paused[run] = band
                    break
        else:
            ended.add(run)
    assert len(ended) + len(paused) == trials
    for band, reached in rungs.items():
        past = {run for run, _ in reached if paused.get(run) != band}
        assert set(asha.best(reached, eta)) <= past
        assert all(paused.get(run) != band for run in asha.best(reached, eta))
    # No run passes a band for free: each was among the best when it passed.
    assert len(rungs[eta]) <= sum(1 for count in range(1, trials + 1) if count >= eta)


def test_a_batch_of_rows_is_judged_band_by_band():
    """Run 9 is among the best at band 1 but not at band 3, which its rows have already passed."""
    rule = asha.AshaRule((1, 3, 9), 3)
    standings = {1: [(1, 2.0), (2, 3.0), (9, 1.0)], 3: [(1, 1.0), (2, 2.0), (9, 3.0)]}
    assert asha.pauses_at(rule, 9, 0, 5, standings.__getitem__) == (3, True)
    assert asha.pauses_at(rule, 9, 3, 8, standings.__getitem__) == (3, False)


def test_at_the_end_one_run_of_a_band_always_continues():
    rule = asha.AshaRule((1, 3), 3)
    standings = {1: [(1, 0.1), (2, 0.2), (4, 0.4)], 3: [(1, 0.1), (2, 0.2)]}
    assert asha.promotable(rule, {1: 3, 2: 3, 4: 1}, standings.__getitem__) == []
    assert asha.promotable(rule, {1: 3, 2: 3, 4: 1}, standings.__getitem__, least=1) == [1]
    assert asha.pauses_at(rule, 1, 1, 3, standings.__getitem__) == (3, True)
    assert asha.pauses_at(rule, 1, 1, 3, standings.__getitem__, least=1) == (3, False)


def test_higher_bands_come_first():
    rule = asha.AshaRule((1, 3), 2)
    standings = {1: [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)], 3: [(5, 0.5), (6, 0.6)]}
    assert asha.promotable(rule, {2: 1, 1: 1, 4: 1, 5: 3, 6: 3}, standings.__getitem__) == [5, 1, 2]
