"""An agent's time limit: parsing --budget and --until, the time left, and how long a trial takes.

Pure, except that `Allowance` reads a clock and `plan_by` reads data files through a planner.
"""

import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from kto_sweep.errors import KtoSweepError, UsageError
from kto_sweep.home import Home
from kto_sweep.plan.cells import cost_key
from kto_sweep.plan.planner import Planner
from kto_sweep.run_log import last_step
from kto_sweep.sweep.view import SweepView
from kto_sweep.trial import Trial

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|min|m|s)", re.ASCII)

CLOSING_SECONDS = 10.0
CLOSING_SHARE = 0.05
"""Trials start saving CLOSING_SECONDS before the end, or this share of the whole time if that is less."""


def parse_duration(text: str) -> float:
    """The seconds in `12h`, `90m`, `1h30m` or `2d`. Raises UsageError."""
    plain = text.strip().lower()
    parts = _SPAN.findall(plain)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not parts or _SPAN.sub("", plain).strip() or not seconds:
        number = re.fullmatch(r"\d+(\.\d+)?", plain)
        hint = f"--budget {plain}h" if number and float(plain) else "--budget 12h, or 90m, 1h30m, 2d"
        raise UsageError(f"--budget {text}: not a GPU time", hint=hint)
    return seconds


def parse_time(text: str, now: datetime) -> datetime:
    """The next time that clocks show `07:00`, or an ISO date and time; with its time zone.

    Without a zone in `text`, the zone of this box and of `now` applies. Raises UsageError for any other form
    or a past time.
    """
    plain = text.strip()
    try:
        if re.fullmatch(r"\d{1,2}:\d\d(:\d\d)?", plain, re.ASCII):
            hour, minute, second = (int(part) for part in f"{plain}:0".split(":")[:3])
            # Drop the zone first: its UTC offset changes on days when clocks change.
            local = now.replace(hour=hour, minute=minute, second=second, microsecond=0, tzinfo=None)
            today = local.astimezone()
            return today if today > now else (local + timedelta(days=1)).astimezone()
        moment = datetime.fromisoformat(plain)
    except ValueError as error:
        raise UsageError(
            f"--until {text}: not a time", hint="--until 07:00, or --until 2027-01-31T07:00"
        ) from error
    moment = moment if moment.tzinfo else moment.astimezone()
    if moment <= now:
        raise UsageError(f"--until {text}: it is already {now:%Y-%m-%d %H:%M}", hint="use a later time")
    return moment


Clock = Callable[[], float]


@dataclass(frozen=True)
class Allowance:
    """A time limit of an agent, in seconds of its clock."""

    began: float
    ends: float
    clock: Clock
    """Unix time for a fixed end; a monotonic clock for GPU-hours."""
    gpus: int = 0
    """Number of GPUs that share the GPU-hours; 0: the end is a fixed time."""

    @classmethod
    def until(cls, moment: float, clock: Clock) -> "Allowance":
        """The time until `moment`."""
        return cls(clock(), moment, clock)

    @classmethod
    def of_gpus(cls, gpus: int, gpu_seconds: float, clock: Clock) -> "Allowance":
        """`gpu_seconds` of all GPUs together, from now on."""
        now = clock()
        return cls(now, now + gpu_seconds / gpus, clock, gpus)

    @property
    def remaining(self) -> float:
        """Seconds until its end."""
        return self.ends - self.clock()

    @property
    def left(self) -> float:
        """Seconds in which trials may run, without the time reserved for saving their work."""
        return self.remaining - min(CLOSING_SECONDS, CLOSING_SHARE * (self.ends - self.began))

    @property
    def option(self) -> tuple[str, str]:
        """Command-line option and value that give another agent the remaining time."""
        if self.gpus:
            return "--budget", f"{max(1.0, self.remaining * self.gpus):.0f}s"
        return "--until", datetime.fromtimestamp(self.ends).astimezone().isoformat()


Plan = Callable[[Trial, int, int], tuple[int, float | None]]
"""Maps a trial, its finished steps and the number of concurrent trials (itself included) to its total steps
and the seconds until its end (None: unknown)."""


@dataclass(frozen=True)
class Forecast:
    """Predicts trial times of one sweep on this box from trials that ended here, else from the plan."""

    plan: Plan
    paces: Mapping[object, tuple[float, ...]] = field(default_factory=dict)
    """Seconds per step of ended trials, by cost key."""

    def with_ended_trial(self, config: Mapping[str, Any], steps: int, seconds: float | None) -> "Forecast":
        """The forecast with one more finished trial."""
        if steps <= 0 or seconds is None:
            return self
        key = cost_key(config)
        return replace(self, paces={**self.paces, key: (*self.paces.get(key, ()), seconds / steps)})

    def seconds(
        self, config: Mapping[str, Any], trial: Trial | None, done_steps: int = 0, together: int = 1
    ) -> float | None:
        """Seconds that a trial takes from step `done_steps` to its end; None: unknown.

        Uses the median of ended trials with the same cost key, else the plan, else the slowest cost key.
        `trial` None: a configuration that cannot be trained, which takes no time.
        """
        steps, planned = (0, None) if trial is None else self.plan(trial, done_steps, together)
        left = max(0, steps - done_steps)
        paces = self.paces.get(cost_key(config))
        if paces is not None:
            return left * statistics.median(paces)
        if planned is not None or not self.paces:
            return planned
        return left * max(map(statistics.median, self.paces.values()))


def plan_by(planner: Planner) -> Plan:
    """The planner's estimates; 0 steps and unknown time for a trial that it cannot plan."""

    def plan(trial: Trial, done_steps: int, together: int) -> tuple[int, float | None]:
        try:
            steps, time = planner.remaining_time(trial, done_steps, together)
        except (KtoSweepError, OSError):
            return 0, None  # its worker will report the problem
        return steps, None if time is None else time.seconds

    return plan


def with_earlier_trials(forecast: Forecast, home: Home, view: SweepView) -> Forecast:
    """The forecast with the sweep's trials that finished on this box."""
    for trial in view.trials:
        folder = home.runs / trial.run_id
        if trial.state == "finished" and folder.is_dir():
            forecast = forecast.with_ended_trial(trial.config, last_step(folder), trial.seconds)
    return forecast
