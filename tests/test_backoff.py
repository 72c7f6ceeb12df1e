"""Delays between attempts, for any backoff."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kto_sweep.agent import heartbeat, retry_policy, trial_lifecycle
from kto_sweep.backoff import Backoff

SECONDS = st.floats(0.001, 1e6)
BACKOFFS = st.builds(Backoff, SECONDS, st.floats(1, 100), SECONDS)


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        (heartbeat.REGISTRATION, [5, 10, 20, 40, 60, 60]),
        (trial_lifecycle.OPENING, [10, 30, 90, 270, 300, 300]),
        (retry_policy.NO_NETWORK, [30, 120, 120, 120, 120, 120]),
    ],
)
def test_delays_of_an_agent(backoff: Backoff, delays: list[float]) -> None:
    assert [backoff.delay(failures) for failures in range(1, 7)] == delays


@given(BACKOFFS, st.integers(1, 10**9))
def test_a_delay_is_within_its_bounds_after_any_number_of_failures(backoff: Backoff, failures: int) -> None:
    assert min(backoff.first, backoff.most) <= backoff.delay(failures) <= backoff.most


@given(BACKOFFS)
def test_delays_grow_by_the_factor_up_to_the_limit(backoff: Backoff) -> None:
    delays = [backoff.delay(failures) for failures in range(1, 30)]
    assert delays[0] == min(backoff.first, backoff.most)
    for before, after in pairwise(delays):
        assert after == pytest.approx(min(before * backoff.factor, backoff.most))
