"""The time options, and which trials may start."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest

from kto_sweep.agent.time_budget import Allowance, Forecast, parse_duration, parse_time
from kto_sweep.errors import UsageError
from kto_sweep.trial import Trial

NOW = datetime(2026, 11, 24, 22, 30, tzinfo=timezone(timedelta(hours=1)))


@pytest.fixture(autouse=True)
def zone(monkeypatch) -> Iterator[None]:
    """A time zone whose clocks change on the last Sundays of March and October."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12h", 43200), ("90m", 5400), ("1h30m", 5400), ("1.5 h", 5400), ("2d", 172800), ("8s", 8)],
)
def test_spans(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "hint"), [("12", "--budget 12h"), ("0h", "12h"), ("long", "12h"), ("3hx", "12h")]
)
def test_an_invalid_time_span_is_rejected_with_a_valid_example(text, hint):
    with pytest.raises(UsageError) as caught:
        parse_duration(text)
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
    assert parse_time(text, NOW) == moment


@pytest.mark.parametrize(
    ("now", "text", "moment"),
    [
        ("2027-03-27T22:30+01:00", "07:00", "2027-03-28T07:00+02:00"),
        ("2027-10-30T22:30+02:00", "07:00", "2027-10-31T07:00+01:00"),
        ("2027-10-31T01:00+02:00", "07:00", "2027-10-31T07:00+01:00"),
        ("2027-01-15T09:00+01:00", "2027-07-01T07:00", "2027-07-01T07:00+02:00"),
    ],
)
def test_a_time_of_day_respects_clock_changes(now, text, moment):
    assert parse_time(text, datetime.fromisoformat(now)) == datetime.fromisoformat(moment)


@pytest.mark.parametrize("text", ["25:00", "tomorrow", "2026-11-24", "2026-13-01"])
def test_invalid_or_past_times_are_rejected(text):
    with pytest.raises(UsageError):
        parse_time(text, NOW)


def test_devices_share_a_budget():
    """Four GPUs use 4000 GPU-seconds in 1000 s; after 400 s, 2400 GPU-seconds are left."""
    clock = iter([0.0, 400.0, 400.0])
    four = Allowance.of_gpus(4, 4000, lambda: next(clock))
    assert four.ends == 1000
    assert four.remaining == 600
    assert four.option == ("--budget", "2400s")


def test_a_replacement_agent_gets_the_remaining_time():
    moment = parse_time("07:00", NOW)
    name, text = Allowance.until(moment.timestamp(), NOW.timestamp).option
    assert name == "--until"
    assert parse_time(text, NOW) == moment
    spent = Allowance(0, 100, lambda: 100.5, gpus=2)
    assert spent.option == ("--budget", "1s"), "no budget is no time"


def test_trials_may_run_until_shortly_before_the_end():
    def hour(now):
        return Allowance(0, 3600, lambda: now)

    assert hour(0).left == 3590
    assert hour(3589).left == 1
    assert Allowance(0, 20, lambda: 0).left == 19


def seconds(forecast: Forecast, config: dict[str, object], **options: int) -> float | None:
    """The predicted time of a trial with this configuration."""
    trial = Trial.from_config({"model_size": "tiny", "dataset": "rows.jsonl"} | config)
    return forecast.seconds(config, trial, **options)


def test_ended_trials_take_precedence_over_the_plan():
    """After trials of 10 and 30 steps at 2 s a step, one of 100 steps takes 200 s, whatever the plan says."""
    forecast = Forecast(lambda trial, done, together: (trial.max_steps or 0, 50.0 * together))
    wanted = {"model_size": "7b", "learning_rate": 1e-5, "max_steps": 100}
    assert seconds(forecast, wanted, together=2) == 100
    forecast = forecast.with_ended_trial({"model_size": "7b", "learning_rate": 3e-5, "max_steps": 10}, 10, 20)
    forecast = forecast.with_ended_trial({"model_size": "7b", "learning_rate": 4e-5, "max_steps": 30}, 30, 60)
    assert seconds(forecast, wanted) == 200
    assert seconds(forecast, wanted, done_steps=75) == 50
    assert seconds(forecast, wanted | {"model_size": "3b"}) == 50


def test_without_a_plan_other_trials_take_as_long_as_the_slowest():
    forecast = Forecast(lambda trial, done, together: (10, None))
    assert seconds(forecast, {"batch_size": 4}) is None
    forecast = forecast.with_ended_trial({"batch_size": 4}, 10, 10).with_ended_trial(
        {"batch_size": 8}, 10, 20
    )
    assert seconds(forecast, {"batch_size": 16}) == 20
