"""Signs of trouble in the rows that a trial logs. Pure: a row in, issues out.

Rewards are judged in nats, as log-ratios (reward / beta), so that every beta has the same thresholds, and by
their mean and trend over a window, because one batch is too noisy. Each sign is reported once, and again only
after it has been absent for a whole window. The thresholds are from runs of small models: healthy ones ended
with desirable completions 0 to 30 nats above the reference and a raw KL estimate within 25 nats of 0; broken
ones ended 150 to 430 nats below it with a raw KL of -150 to -1400, and none of them recovered.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

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
    spread = math.sqrt(sum((after - before) ** 2 for before, after in pairwise(values)) / (2 * (n - 1)))
    return Trend(mean, spread / math.sqrt(n), change, spread * math.sqrt(2 / half))


WINDOW = 20
"""Values in the mean and trend of a metric."""

LOST = 50.0
"""Nats below the reference at which a trial has failed: an answer is then e^50 times less likely than before
training, and at beta 0.1 less than 3 % of the loss's slope is left to recover with."""

FAR = 20.0
"""Nats below the reference for a warning."""

KL_LOST, KL_FAR = 200.0, 100.0
"""Nats of the raw KL estimate, positive or negative: to fail a trial while it grows, and for a warning."""

SATURATED = 3.0
"""beta * KL beyond which the reference point saturates the loss: 5 % of its slope is left."""

STILL = 0.01
"""Nats that count as no change: 0.001 of a reward at beta 0.1."""

KL_STILL = 0.001
"""Nats of the raw KL estimate that count as no change."""

MARGIN = 1.0
"""Nats of margin for a warning."""

GRADIENT = 1000.0
"""Gradient norm for a warning, times beta: gradients are proportional to it. 100 at beta 0.1."""

SPIKE = 20.0
"""Times the median of the last steps at which the gradient norm is a spike."""

STUCK = 10
"""Steps in a row without a finite gradient after which a trial has failed: its weights no longer change."""

UNTRAINED = 0.499
"""eval/common_loss of a trial that has learned nothing: 0.5, minus a little noise."""


@dataclass(frozen=True)
class HealthIssue:
    """A sign of trouble in a trial."""

    title: str
    text: str
    """The number, and what to try."""
    fatal: bool = False
    """Whether the trial cannot recover."""


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


class History:
    """A trial's recent rows."""

    def __init__(self, trial: HealthContext) -> None:
        self.trial = trial
        self.step = 0
        self.last: dict[str, float] = {}
        """The last value of each metric."""
        self.moved = False
        """Whether rewards have ever left 0."""
        self.without_gradient = 0
        """Steps in a row whose gradient was not finite."""
        self._windows: dict[str, deque[float]] = {}

    def add(self, step: int, row: Mapping[str, float]) -> None:
        """Add a row; one step may have several."""
        self.step = step
        self.last |= row
        for name, value in row.items():
            if math.isfinite(value):  # one infinite value would hide a trend for a whole window
                self._windows.setdefault(name, deque(maxlen=WINDOW)).append(value)
        if "grad_norm" in row:  # rows of an evaluation alone have none
            self.without_gradient = 0 if math.isfinite(row["grad_norm"]) else self.without_gradient + 1
        # 10 times the threshold: away from 0 for certain, so that a return to 0 is a collapse.
        rewards = [abs(row.get(f"rewards/{side}", 0.0)) for side in ("chosen", "rejected")]
        self.moved = self.moved or max(rewards) > 10 * STILL * self.trial.beta

    @property
    def warm(self) -> bool:
        """Whether a whole window has passed since the warm-up."""
        return self.step >= self.trial.warmup + WINDOW

    def window(self, name: str) -> list[float]:
        """The last values of a metric; empty before there is a whole window of them."""
        values = self._windows.get(name, ())
        return list(values) if len(values) == WINDOW else []

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


def _loss_not_finite(history: History) -> str:
    loss = history.last.get("loss", 0.0)
    return "" if math.isfinite(loss) else f"the loss is {loss}"


def _stuck(history: History) -> str:
    if history.without_gradient < STUCK:
        return ""
    return f"the gradient was not finite in {STUCK} steps in a row, so the weights do not change"


def _lost(history: History) -> str:
    chosen = history.reward("chosen")
    # A trial that recovers is left alone, however low it is: high learning rates dip early.
    if chosen is None or chosen.mean > -LOST or chosen.rising:
        return ""
    return (
        f"desirable completions are {-chosen.mean:.0f} nats less likely than before training "
        f"(rewards/chosen {chosen.mean * history.trial.beta:.3g}), and not recovering"
    )


def _kl_diverged(history: History) -> str:
    kl = history.trend("kl_raw")
    # Away from 0 in either direction: the estimate of a broken model is mostly negative.
    if kl is None or abs(kl.mean) < KL_LOST or not (kl.rising if kl.mean > 0 else kl.falling):
        return ""
    return f"the raw KL estimate is {kl.mean:.0f} nats and growing"


def _gradient_not_finite(history: History) -> str:
    if not history.without_gradient:
        return ""
    return "the gradient is not finite; this step changes nothing"


def _far(history: History) -> str:
    chosen = history.reward("chosen")
    # The confidence bound, not the mean: one window's noise must not warn.
    if chosen is None or chosen.below > -FAR:
        return ""
    return f"desirable completions are {-chosen.mean:.0f} nats less likely than before training"


def _kl_far(history: History) -> str:
    kl = history.trend("kl_raw")
    if kl is None:
        return ""
    if abs(kl.mean) > KL_FAR:
        return f"the raw KL estimate is {kl.mean:.0f} nats"
    # Only a large positive z0 saturates the loss; negative ones are clamped to 0.
    if history.trial.beta * kl.mean > SATURATED:
        return f"the KL estimate is {kl.mean:.1f} nats: at this beta it saturates the loss"
    return ""


def _collapsed(history: History) -> str:
    # Every value, not the mean: rewards that vary around 0 are not stuck.
    sides = [history.window(f"rewards/{side}") for side in ("chosen", "rejected")]
    least = STILL * history.trial.beta
    if not history.warm or not all(sides) or any(abs(value) > least for side in sides for value in side):
        return ""
    if history.moved:
        return "both rewards are back at 0"
    return f"both rewards have stayed at 0 for {WINDOW} steps"


def _kl_still(history: History) -> str:
    kl = history.window("kl_raw")
    # Rewards at 0 as well are reported by _collapsed.
    if not history.warm or not kl or any(abs(value) > KL_STILL for value in kl) or _collapsed(history):
        return ""
    return f"the raw KL estimate has stayed at 0 for {WINDOW} steps"


def _margin_negative(history: History) -> str:
    margin = history.margin()
    # Significantly negative, and by a relevant amount: both, since either alone is common.
    if margin is None or margin.below > 0 or margin.mean > -MARGIN:
        return ""
    return f"the margin is {margin.mean:.1f} nats: undesirable completions gain more than desirable ones"


def _margin_falling(history: History) -> str:
    margin = history.margin()
    # In proportion to the margin: a large one varies more in nats.
    if margin is None or not margin.falling or -margin.change < max(MARGIN, 0.1 * abs(margin.mean)):
        return ""
    return (
        f"the margin has fallen by {-margin.change:.1f} nats within {WINDOW} steps, to {margin.mean:.1f} nats"
    )


def _margin_flat(history: History) -> str:
    margin = history.margin()
    # Not in the first half: the margin of a small learning rate is still flat there.
    if margin is None or history.step < max(history.trial.steps // 2, history.trial.warmup + 2 * WINDOW):
        return ""
    separated = margin.above > 0 or margin.below < 0 or abs(margin.mean) > MARGIN or margin.rising
    if separated or _collapsed(history):
        return ""
    return "the margin stays around 0: desirable and undesirable completions are not separated"


def _gradient_large(history: History) -> str:
    norm = history.last.get("grad_norm", 0.0)
    if not math.isfinite(norm):
        return ""  # reported by _gradient_not_finite
    usual = history.window("grad_norm")  # with this step: the median ignores one spike
    if norm > GRADIENT * history.trial.beta:
        return f"the gradient norm is {norm:.3g}"
    # The second condition: 20 times a tiny norm is still harmless.
    if usual and norm > SPIKE * median(usual) and norm > GRADIENT * history.trial.beta / 20:
        return f"the gradient norm jumped to {norm:.3g}, from about {median(usual):.3g}"
    return ""


def _loss_rising(history: History) -> str:
    loss, before = history.trend("loss"), history.trial.untrained_loss
    # Significantly above what an untrained model has: batches vary around it at the start.
    if loss is None or loss.above < before:
        return ""
    return f"the loss is {loss.mean:.3f}; before training it was {before:.3f}"


def _nothing_learned(history: History) -> str:
    loss = history.last.get("eval/common_loss")
    # In the second half only: evaluations during the warm-up are all at 0.5.
    if loss is None or loss < UNTRAINED or 2 * history.step < history.trial.steps:
        return ""
    return f"eval/common_loss is {loss:.3f} at step {history.step}: no better than before training"


_LOWER = "try a lower learning_rate"
_HIGHER = "if it stays there, try a higher learning_rate"


@dataclass(frozen=True)
class _Rule:
    title: str
    check: Callable[[History], str]
    """What is wrong, or an empty text."""
    advice: str = ""
    fatal: bool = False


_RULES = (
    _Rule("loss not finite", _loss_not_finite, _LOWER, fatal=True),
    _Rule("no usable gradient", _stuck, _LOWER, fatal=True),
    _Rule("diverged", _lost, f"{_LOWER} or a larger beta", fatal=True),
    _Rule("KL diverged", _kl_diverged, f"{_LOWER} or a larger beta", fatal=True),
    _Rule("gradient not finite", _gradient_not_finite, _LOWER),
    _Rule("desirable rewards far below the reference", _far, _LOWER),
    _Rule("KL large", _kl_far, _LOWER),
    _Rule("rewards stay at 0", _collapsed, _HIGHER),
    _Rule("KL stays at 0", _kl_still, _HIGHER),
    _Rule("margin negative", _margin_negative, "check that the labels are not swapped"),
    _Rule("margin falling", _margin_falling, _LOWER),
    _Rule("margin flat", _margin_flat, _HIGHER),
    _Rule("gradient norm", _gradient_large, "try a larger warmup_ratio, and max_grad_norm above 0"),
    _Rule("loss above its initial value", _loss_rising, _LOWER),
    _Rule("no better than untrained", _nothing_learned, "the sweep's other trials may do better"),
)


class Health:
    """Checks the rows of one trial."""

    def __init__(self, trial: HealthContext) -> None:
        self._history = History(trial)
        self._last_seen: dict[str, int] = {}
        """The last step of each reported sign."""

    def check(self, step: int, row: Mapping[str, float]) -> list[HealthIssue]:
        """New signs of trouble in `row`, logged at `step`."""
        self._history.add(step, row)
        issues = []
        for rule in _RULES:
            problem = rule.check(self._history)
            if problem and self._is_new(rule, step):
                advice = f"; {rule.advice}" if rule.advice else ""
                issues.append(HealthIssue(rule.title, f"{problem}{advice}", rule.fatal))
        return issues

    def _is_new(self, rule: _Rule, step: int) -> bool:
        last = self._last_seen.get(rule.title)
        self._last_seen[rule.title] = step  # also while it stays: then it is not new
        return last is None or step - last > WINDOW
