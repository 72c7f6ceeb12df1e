"""What the options mean, and which trials may begin."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from kto_sweep.budget import Allowance, Forecast, read_moment, read_span
from kto_sweep.errors import UsageError

NOW = datetime(2026, 11, 24, 22, 30, tzinfo=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12h", 43200), ("90m", 5400), ("1h30m", 5400), ("1.5 h", 5400), ("2d", 172800), ("8s", 8)],
)
def test_spans(text, seconds):
    assert read_span(text) == seconds


@pytest.mark.parametrize(
    ("text", "hint"), [("12", "--budget 12h"), ("0h", "12h"), ("long", "12h"), ("3hx", "12h")]
)
def test_what_is_no_span_is_refused_with_one_that_is(text, hint):
    with pytest.raises(UsageError) as caught:
        read_span(text)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("07:00", NOW.replace(day=25, hour=7, minute=0)),
        ("23:15", NOW.replace(hour=23, minute=15)),
        ("2026-11-26", NOW.replace(day=26, hour=0, minute=0)),
        ("2026-11-25T07:00", NOW.replace(day=25, hour=7, minute=0)),
        ("2026-11-25T07:00Z", datetime(2026, 11, 25, 7, tzinfo=UTC)),
    ],
)
def test_moments(text, moment):
    assert read_moment(text, NOW) == moment


@pytest.mark.parametrize("text", ["25:00", "tomorrow", "2026-11-24", "2026-13-01"])
def test_moments_that_are_none_or_past_are_refused(text):
    with pytest.raises(UsageError):
        read_moment(text, NOW)


def test_devices_share_a_budget_and_the_earlier_end_holds():
    assert Allowance.of(1000, 4, 4000, None) == Allowance(1000, 2000)
    assert Allowance.of(1000, 1, 4000, 1500) == Allowance(1000, 1500)
    assert Allowance.of(1000, 1, None, None) is None


def test_a_trial_begins_when_it_ends_before_the_others_are_put_away():
    hour = Allowance(0, 3600)
    assert hour.closes == 3590
    assert hour.permits(590, 3000)
    assert not hour.permits(591, 3000)
    assert hour.permits(None, 3589)
    assert not hour.permits(None, 3590)
    assert Allowance(0, 20).closes == 19


def test_a_forecast_goes_by_what_ran_before_the_plan():
    """Two trials of 10 and 30 steps at 2 s a step: one of 100 steps takes 200 s, whatever was planned."""
    forecast = Forecast(lambda config, done, together: (config["max_steps"], 50.0 * together))
    wanted = {"model_size": "7b", "learning_rate": 1e-5, "max_steps": 100}
    assert forecast.seconds(wanted, together=2) == 100
    forecast.learn({"model_size": "7b", "learning_rate": 3e-5, "max_steps": 10}, 10, 20)
    forecast.learn({"model_size": "7b", "learning_rate": 4e-5, "max_steps": 30}, 30, 60)
    assert forecast.seconds(wanted) == 200
    assert forecast.seconds(wanted, done_steps=75) == 50
    assert forecast.seconds(wanted | {"model_size": "3b"}) == 50


def test_without_a_plan_an_unlike_trial_is_taken_for_the_slowest_and_the_first_is_not_known():
    forecast = Forecast(lambda config, done, together: (10, None))
    assert forecast.seconds({"batch_size": 4}) is None
    forecast.learn({"batch_size": 4}, 10, 10)
    forecast.learn({"batch_size": 8}, 10, 20)
    assert forecast.seconds({"batch_size": 16}) == 20
