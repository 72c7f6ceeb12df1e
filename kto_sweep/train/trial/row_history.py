"""What the health checks know of a trial: recent rows with their trends, and counts over all rows. Pure."""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SURE = 3.0
"""Standard errors of a significant difference: one window in several hundred exceeds them by chance."""


@dataclass(frozen=True)
class Trend:
    """A series over one window."""

    mean: float
    error: float
    """Standard error of the mean."""
    change: float
    """Mean of the later half minus that of the earlier half."""
    change_error: float

    @property
    def falling(self) -> bool:
        """Whether the end is significantly lower than the start."""
        return self.change < -SURE * self.change_error

    @property
    def rising(self) -> bool:
        """Whether the end is significantly higher than the start."""
        return self.change > SURE * self.change_error

    @property
    def below(self) -> float:
        """Upper confidence bound of the mean."""
        return self.mean + SURE * self.error

    @property
    def above(self) -> float:
        """Lower confidence bound of the mean."""
        return self.mean - SURE * self.error

    def minus(self, other: "Trend") -> "Trend":
        """The difference of two independent series."""
        return Trend(
            self.mean - other.mean,
            math.hypot(self.error, other.error),
            self.change - other.change,
            math.hypot(self.change_error, other.change_error),
        )


def trend(values: Sequence[float]) -> Trend:
    """The trend of at least four values, the oldest first.

    The noise is estimated from the differences of neighbours (J. von Neumann 1941, doi
    10.1214/aoms/1177731677), so that a steep trend does not count as noise. For 0, 1, 2, 3, 4, 5 it is
    1 / sqrt(2) per value:

    >>> line = trend([0, 1, 2, 3, 4, 5])
    >>> line.mean, line.change, round(line.error * 6**0.5, 4), line.rising
    (2.5, 3.0, 0.7071, True)
    """
    n, half = len(values), len(values) // 2
    mean = sum(values) / n
    change = sum(values[-half:]) / half - sum(values[:half]) / half
    # dist, not a sum of squares: the square of 1e200 raises OverflowError.
    spread = math.dist(values[1:], values[:-1]) / math.sqrt(2 * (n - 1))
    return Trend(mean, spread / math.sqrt(n), change, spread * math.sqrt(2 / half))


WINDOW = 20
"""Values in the mean and trend of a metric."""

RECENT = 10
"""Steps over which values that are not finite are counted while a trial trains."""

LOST = 50.0
"""Nats below the reference at which a trial has failed: an answer is then e^50 times less likely than before
training, and at beta 0.1 less than 3 % of the loss's slope is left to recover with."""

UNTRAINED = 0.499
"""eval/common_loss of a trial that has learned nothing: 0.5, minus a little noise."""

STILL = 0.01
"""Nats that count as no change: 0.001 of a reward at beta 0.1."""

GRADIENT = 1000.0
"""Gradient norm that is large, times beta: gradients are proportional to it. 100 at beta 0.1."""

CLIPPED = 100.0
"""Times max_grad_norm beyond which a gradient is clipped to a mere direction."""

STEP_METRICS = ("loss", "rewards/chosen", "rewards/rejected", "kl_raw", "grad_norm")
"""What every optimizer step must give as finite numbers."""

EVAL_METRICS = ("eval/common_loss", "eval/loss", "eval/kl_raw")
"""What every evaluation must give as finite numbers; eval/dprime is infinite for two rows apart."""


@dataclass(frozen=True)
class HealthContext:
    """What is known about a trial before its first step."""

    beta: float
    untrained_loss: float
    """Its loss on the training set before the first step: half the mean weight of an example."""
    warmup: int
    """Steps in which the learning rate rises."""
    steps: int
    """Optimizer steps in all."""
    max_grad_norm: float = 1.0
    """Norm to which larger gradients are scaled down; 0: never."""

    @property
    def exploded_norm(self) -> float:
        """The gradient norm beyond which a step counts as exploded.

        More than CLIPPED times max_grad_norm, and large for the trial's beta: a small max_grad_norm clips
        ordinary gradients by any factor, which Adam does not notice, since its updates are the same for a
        gradient times a constant.
        """
        return max(CLIPPED * self.max_grad_norm, GRADIENT * self.beta)


class History:
    """A trial's rows so far."""

    def __init__(self, trial: HealthContext) -> None:
        self.trial = trial
        self.step = 0
        self.last: dict[str, float] = {}
        """The last value of each metric."""
        self.moved = False
        """Whether rewards have ever left 0."""
        self.steps = 0
        """Optimizer steps with a row."""
        self.not_finite: dict[str, int] = {}
        """The first step in which each metric was not finite."""
        self.bad_steps = 0
        """Steps with a value that is not finite."""
        self.recent: deque[list[str]] = deque(maxlen=RECENT)
        """The metrics that were not finite in each of the last steps, the oldest first."""
        self.steps_after_warmup = 0
        self.exploded_steps = 0
        """Those after the warm-up whose gradient exploded, or was not finite."""
        self._windows: dict[str, deque[float]] = {}

    def add(self, step: int, row: Mapping[str, float]) -> None:
        """Add a row; one step may have several."""
        self.step = step
        self.last |= row
        for name, value in row.items():
            if math.isfinite(value):  # one infinite value would hide a trend for a whole window
                self._windows.setdefault(name, deque(maxlen=WINDOW)).append(value)
        if "loss" in row:  # rows of an evaluation alone have none
            self._count_step(step, row)
        # 10 times the threshold: away from 0 for certain, so that a return to 0 is a collapse.
        rewards = [abs(row.get(f"rewards/{side}", 0.0)) for side in ("chosen", "rejected")]
        self.moved = self.moved or max(rewards) > 10 * STILL * self.trial.beta

    def _count_step(self, step: int, row: Mapping[str, float]) -> None:
        bad = not_finite(row, STEP_METRICS)
        for name in bad:
            self.not_finite.setdefault(name, step)
        self.steps += 1
        self.bad_steps += bool(bad)
        self.recent.append(bad)
        if step > self.trial.warmup and "grad_norm" in row:
            self.steps_after_warmup += 1
            self.exploded_steps += not row["grad_norm"] <= self.trial.exploded_norm  # NaN is exploded too

    @property
    def warm(self) -> bool:
        """Whether a whole window has passed since the warm-up."""
        return self.step >= self.trial.warmup + WINDOW

    def window(self, name: str) -> list[float]:
        """The last values of a metric; empty before there is a whole window of them."""
        values = self._windows.get(name, ())
        return list(values) if len(values) == WINDOW else []

    def end(self, name: str) -> list[float]:
        """The later half of a metric's last window, which a short trial may not have filled."""
        values = list(self._windows.get(name, ()))
        return values[len(values) // 2 :]

    def trend(self, name: str, unit: float = 1.0) -> Trend | None:
        """The trend of a metric, in multiples of `unit`; None before there is a whole window."""
        values = self.window(name)
        return trend([value / unit for value in values]) if values else None

    def reward(self, side: str) -> Trend | None:
        """The trend of `rewards/<side>` in nats."""
        return self.trend(f"rewards/{side}", self.trial.beta)

    def margin(self) -> Trend | None:
        """The trend of the margin in nats, whatever the batches hold of each label."""
        chosen, rejected = self.reward("chosen"), self.reward("rejected")
        return chosen.minus(rejected) if chosen and rejected else None


def not_finite(row: Mapping[str, float], names: Iterable[str]) -> list[str]:
    """Those of the metrics in `row` that are infinite or NaN."""
    return [name for name in names if not math.isfinite(row.get(name, 0.0))]
