"""An agent's time: which trials may still begin, and when those that run are put back."""

from collections.abc import Mapping, Sequence
from typing import Any

from kto_sweep.agent.runs import CHECKPOINT
from kto_sweep.budget import Allowance, Forecast, Plan
from kto_sweep.errors import KtoSweepError
from kto_sweep.home import Home
from kto_sweep.plan.planner import Planner
from kto_sweep.protocol import Done
from kto_sweep.run_log import last_step
from kto_sweep.sweep.view import SweepView
from kto_sweep.text import duration
from kto_sweep.trial import Trial


class Timekeeper:
    """Keeps an agent within its allowances."""

    def __init__(self, allowances: Sequence[Allowance], forecast: Forecast, home: Home) -> None:
        self._allowances = allowances
        self._forecast = forecast
        self._home = home

    @property
    def options(self) -> list[str]:
        """What gives another agent the rest of the time."""
        return [word for allowance in self._allowances for word in allowance.option]

    @property
    def is_up(self) -> bool:
        """Whether the trials that run have to be put back."""
        return any(allowance.left <= 0 for allowance in self._allowances)

    def refusal(self, run_id: str, config: Mapping[str, Any], together: int) -> str:
        """Why a trial must not begin, beside as many others as make `together`; empty when it may."""
        folder = self._home.runs / run_id
        done = last_step(folder) if (folder / CHECKPOINT).exists() else 0
        seconds = self._forecast.seconds(config, done, together)
        if all(allowance.permits(seconds) for allowance in self._allowances):
            return ""
        left = duration(max(0.0, min(allowance.left for allowance in self._allowances)))
        return f"{left} are left" + ("" if seconds is None else f" and it takes {duration(seconds)}")

    def learn(self, config: Mapping[str, Any], message: Done) -> None:
        """Take note of a trial that has run to its end."""
        seconds = message.summary.get("trial/seconds")
        if not message.stopped and isinstance(seconds, int | float):
            self._forecast.learn(config, message.steps, float(seconds))

    def learn_earlier(self, view: SweepView) -> None:
        """Take note of the sweep's trials that this box has run to their ends before."""
        for trial in view.trials:
            folder = self._home.runs / trial.run_id
            if trial.state == "finished" and folder.is_dir():
                self._forecast.learn(trial.config, last_step(folder), trial.seconds)


def by(planner: Planner) -> Plan:
    """What the planner says of a trial's time; a trial that it cannot read has no steps and no time."""

    def plan(config: Mapping[str, Any], done_steps: int, together: int) -> tuple[int, float | None]:
        try:
            steps, time = planner.remaining_time(Trial.from_config(config), done_steps, together)
        except (KtoSweepError, OSError):
            return 0, None  # its worker will say what is wrong with it
        return steps, None if time is None else time.seconds

    return plan
