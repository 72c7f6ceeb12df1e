"""An agent's time: how much it has, how long a trial takes, and what it says of both on the command line.

Pure, but for `Allowance` and the planner that `plan_by` is given, which read a clock and the data's files.
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
"""Trials save their work this long before the end, or this share of the whole time if that is less."""


def read_span(text: str) -> float:
    """The seconds that `12h`, `90m`, `1h30m` or `2d` mean. Raises UsageError."""
    plain = text.strip().lower()
    parts = _SPAN.findall(plain)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not parts or _SPAN.sub("", plain).strip() or not seconds:
        number = re.fullmatch(r"\d+(\.\d+)?", plain)
        hint = f"--budget {plain}h" if number and float(plain) else "--budget 12h, or 90m, 1h30m, 2d"
        raise UsageError(f"--budget {text}: not a time of GPUs", hint=hint)
    return seconds


def read_moment(text: str, now: datetime) -> datetime:
    """The moment that `07:00` (the next time clocks show it) or an ISO date and time mean, with its zone.

    Both are read in the zone of this box, which `now` has as well. Raises UsageError for another form or a
    past moment.
    """
    plain = text.strip()
    try:
        if re.fullmatch(r"\d{1,2}:\d\d(:\d\d)?", plain, re.ASCII):
            hour, minute, second = (int(part) for part in f"{plain}:0".split(":")[:3])
            # Without a zone, which has another offset on the day when clocks are changed.
            shown = now.replace(hour=hour, minute=minute, second=second, microsecond=0, tzinfo=None)
            today = shown.astimezone()
            return today if today > now else (shown + timedelta(days=1)).astimezone()
        moment = datetime.fromisoformat(plain)
    except ValueError as error:
        raise UsageError(
            f"--until {text}: not a time", hint="--until 07:00, or --until 2027-01-31T07:00"
        ) from error
    moment = moment if moment.tzinfo else moment.astimezone()
    if moment <= now:
        raise UsageError(f"--until {text}: it is {now:%Y-%m-%d %H:%M} already", hint="name a later time")
    return moment


Clock = Callable[[], float]


@dataclass(frozen=True)
class Allowance:
    """The time that an agent has, in seconds of its clock."""

    began: float
    ends: float
    clock: Clock
    """Unix seconds for a moment; for GPU-hours a clock that is never set."""
    gpus: int = 0
    """GPUs that share these hours; 0: it is a moment."""

    @classmethod
    def until(cls, moment: float, clock: Clock) -> "Allowance":
        """All of the time up to a moment."""
        return cls(clock(), moment, clock)

    @classmethod
    def of_gpus(cls, gpus: int, gpu_seconds: float, clock: Clock) -> "Allowance":
        """So many seconds of all GPUs together, from now on."""
        now = clock()
        return cls(now, now + gpu_seconds / gpus, clock, gpus)

    @property
    def rest(self) -> float:
        """Seconds to its end."""
        return self.ends - self.clock()

    @property
    def left(self) -> float:
        """Seconds in which trials may run: the rest is for saving their work before the agent's end."""
        return self.rest - min(CLOSING_SECONDS, CLOSING_SHARE * (self.ends - self.began))

    @property
    def option(self) -> tuple[str, str]:
        """What to type for another agent that is to have the rest of it."""
        if self.gpus:
            return "--budget", f"{max(1.0, self.rest * self.gpus):.0f}s"
        return "--until", datetime.fromtimestamp(self.ends).astimezone().isoformat()


Plan = Callable[[Trial, int, int], tuple[int, float | None]]
"""Of a trial, the steps it has done and the trials beside it (itself counted): its steps in all, and the
seconds to its end, None if unknown."""


@dataclass(frozen=True)
class Forecast:
    """How long trials of one sweep take on this box: like those that have ended here, else as planned."""

    plan: Plan
    paces: Mapping[object, tuple[float, ...]] = field(default_factory=dict)
    """Seconds per step of the trials that have ended, by what their cost depends on."""

    def learned(self, config: Mapping[str, Any], steps: int, seconds: float | None) -> "Forecast":
        """The forecast that also knows a trial that has run to its end."""
        if steps <= 0 or seconds is None:
            return self
        key = cost_key(config)
        return replace(self, paces={**self.paces, key: (*self.paces.get(key, ()), seconds / steps)})

    def seconds(
        self, config: Mapping[str, Any], trial: Trial | None, done_steps: int = 0, together: int = 1
    ) -> float | None:
        """How long a trial takes from step `done_steps` to its end.

        By the median of its kind; without one as planned; else like the slowest kind; None: unknown.
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
    """What the planner says of a trial's time; a trial that it cannot plan has no steps and no time."""

    def plan(trial: Trial, done_steps: int, together: int) -> tuple[int, float | None]:
        try:
            steps, time = planner.remaining_time(trial, done_steps, together)
        except (KtoSweepError, OSError):
            return 0, None  # its worker will say what is wrong with it
        return steps, None if time is None else time.seconds

    return plan


def learn_earlier(forecast: Forecast, home: Home, view: SweepView) -> Forecast:
    """The forecast that also knows the sweep's trials that this box has run to their ends."""
    for trial in view.trials:
        folder = home.runs / trial.run_id
        if trial.state == "finished" and folder.is_dir():
            forecast = forecast.learned(trial.config, last_step(folder), trial.seconds)
    return forecast
