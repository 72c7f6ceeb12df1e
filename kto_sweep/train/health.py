"""Signs that a trial goes wrong, from the rows that it logs. Pure: a row in, findings out.

Rewards are judged in nats, as log-ratios (reward / beta), so that every beta has the same thresholds; and by
the mean and trend over a window, because one batch says little. Each sign is told once, and again only after
it has been gone for a whole window. The numbers are from runs of small models: good ones ended with desirable
completions 0 to 30 nats above the reference and a raw KL estimate within 25 nats of 0, broken ones 150 to 430
nats below it with a raw KL of -150 to -1400, and none of these came back.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from kto_sweep.train.trend import Trend, trend

WINDOW = 20
"""Values that a sign is judged by."""

LOST = 50.0
"""Nats below the reference at which a trial is given up: an answer is then e^50 times less likely than before
training, and at beta 0.1 the loss has less than 3 % of its slope left to bring it back."""

FAR = 20.0
"""Nats below the reference that are worth a warning."""

KL_LOST, KL_FAR = 200.0, 100.0
"""Nats of the raw KL estimate, either way: what ends a trial while it grows, and what is worth a warning."""

SATURATED = 3.0
"""beta * KL beyond which the reference point hides the examples: the loss has 5 % of its slope left."""

STILL = 0.01
"""Nats that are no movement: the original script's 0.001 of a reward at beta 0.1."""

KL_STILL = 0.001
"""The same for the raw KL estimate."""

MARGIN = 1.0
"""Nats of margin below which nobody needs to be told."""

GRADIENT = 1000.0
"""Times beta, to which gradients are proportional: the norm worth a warning; 100 at beta 0.1, as the original
script has it."""

SPIKE = 20.0
"""Times the median of the last steps that make a spike of the gradient norm."""

STUCK = 10
"""Steps in a row without a usable gradient after which none will come: the adapters have not moved since."""

UNTRAINED = 0.499
"""eval/common_loss of a trial that has learned nothing: 0.5, and a little noise."""


@dataclass(frozen=True)
class Finding:
    """Something that a person should know of a trial."""

    title: str
    text: str
    """What is seen, with the number, and what to try."""
    fatal: bool = False
    """The trial cannot recover."""


@dataclass(frozen=True)
class Judged:
    """What is known of a trial before it begins."""

    beta: float
    untrained_loss: float
    """Its loss on the whole training set before the first step: half the mean weight of an example."""
    warmup: int
    """Steps in which the learning rate rises."""
    steps: int
    """All its optimizer steps."""


class History:
    """What a trial has logged of late."""

    def __init__(self, trial: Judged) -> None:
        self.trial = trial
        self.step = 0
        self.last: dict[str, float] = {}
        """The last value of each metric."""
        self.moved = False
        """Rewards have been away from 0 before."""
        self.without_gradient = 0
        """Steps in a row whose gradient was not finite."""
        self._windows: dict[str, deque[float]] = {}

    def add(self, step: int, row: Mapping[str, float]) -> None:
        """Take note of a row; one step may have several."""
        self.step = step
        self.last |= row
        for name, value in row.items():
            if math.isfinite(value):
                self._windows.setdefault(name, deque(maxlen=WINDOW)).append(value)
        if "grad_norm" in row:
            self.without_gradient = 0 if math.isfinite(row["grad_norm"]) else self.without_gradient + 1
        rewards = [abs(row.get(f"rewards/{side}", 0.0)) for side in ("chosen", "rejected")]
        self.moved = self.moved or max(rewards) > 10 * STILL * self.trial.beta

    @property
    def warm(self) -> bool:
        """A whole window lies behind the warm-up."""
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
    return f"the gradient was not finite in {STUCK} steps in a row, so the adapters do not move"


def _lost(history: History) -> str:
    chosen = history.reward("chosen")
    if chosen is None or chosen.mean > -LOST or chosen.rising:
        return ""
    return (
        f"desirable completions are {-chosen.mean:.0f} nats less likely than before training "
        f"(rewards/chosen {chosen.mean * history.trial.beta:.3g}), with no sign of a return"
    )


def _kl_ran_away(history: History) -> str:
    kl = history.trend("kl_raw")
    if kl is None or abs(kl.mean) < KL_LOST or not (kl.rising if kl.mean > 0 else kl.falling):
        return ""
    return f"the raw KL estimate is {kl.mean:.0f} nats and runs away"


def _gradient_not_finite(history: History) -> str:
    if not history.without_gradient:
        return ""
    return "the gradient is not finite; the adapters stay as they are"


def _far(history: History) -> str:
    chosen = history.reward("chosen")
    if chosen is None or chosen.below > -FAR:
        return ""
    return f"desirable completions are {-chosen.mean:.0f} nats less likely than before training"


def _kl_far(history: History) -> str:
    kl = history.trend("kl_raw")
    if kl is None:
        return ""
    if abs(kl.mean) > KL_FAR:
        return f"the raw KL estimate is {kl.mean:.0f} nats"
    if history.trial.beta * kl.mean > SATURATED:
        return f"the KL estimate is {kl.mean:.1f} nats: at this beta it hides what single examples say"
    return ""


def _collapsed(history: History) -> str:
    sides = [history.window(f"rewards/{side}") for side in ("chosen", "rejected")]
    least = STILL * history.trial.beta
    if not history.warm or not all(sides) or any(abs(value) > least for side in sides for value in side):
        return ""
    if history.moved:
        return "both rewards have gone back to 0"
    return f"both rewards have stayed at 0 for {WINDOW} steps"


def _kl_still(history: History) -> str:
    kl = history.window("kl_raw")
    if not history.warm or not kl or any(abs(value) > KL_STILL for value in kl) or _collapsed(history):
        return ""
    return f"the raw KL estimate has stayed at 0 for {WINDOW} steps"


def _margin_negative(history: History) -> str:
    margin = history.margin()
    if margin is None or margin.below > 0 or margin.mean > -MARGIN:
        return ""
    return f"the margin is {margin.mean:.1f} nats: undesirable completions gain on desirable ones"


def _margin_falling(history: History) -> str:
    margin = history.margin()
    if margin is None or not margin.falling or -margin.change < max(MARGIN, 0.1 * abs(margin.mean)):
        return ""
    return (
        f"the margin has fallen by {-margin.change:.1f} nats within {WINDOW} steps, to {margin.mean:.1f} nats"
    )


def _margin_flat(history: History) -> str:
    margin = history.margin()
    if margin is None or history.step < max(history.trial.steps // 2, history.trial.warmup + 2 * WINDOW):
        return ""
    told_apart = margin.above > 0 or margin.below < 0 or abs(margin.mean) > MARGIN or margin.rising
    if told_apart or _collapsed(history):
        return ""
    return "desirable and undesirable completions are still not told apart: the margin stays around 0"


def _gradient_large(history: History) -> str:
    norm = history.last.get("grad_norm", 0.0)
    if not math.isfinite(norm):
        return ""  # told already
    usual = history.window("grad_norm")
    if norm > GRADIENT * history.trial.beta:
        return f"the gradient norm is {norm:.3g}"
    if usual and norm > SPIKE * median(usual) and norm > GRADIENT * history.trial.beta / 20:
        return f"the gradient norm jumped to {norm:.3g}, from about {median(usual):.3g}"
    return ""


def _loss_rising(history: History) -> str:
    loss, before = history.trend("loss"), history.trial.untrained_loss
    if loss is None or loss.above < before:
        return ""
    return f"the loss is {loss.mean:.3f}; before training it was {before:.3f}"


def _nothing_learned(history: History) -> str:
    loss = history.last.get("eval/common_loss")
    if loss is None or loss < UNTRAINED or 2 * history.step < history.trial.steps:
        return ""
    return f"eval/common_loss is {loss:.3f} at step {history.step}: no better than before training"


_LOWER = "try a lower learning_rate"
_HIGHER = "try a higher learning_rate, if it stays so"


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
    _Rule("KL ran away", _kl_ran_away, f"{_LOWER} or a larger beta", fatal=True),
    _Rule("gradient not finite", _gradient_not_finite, _LOWER),
    _Rule("desirable rewards far below the reference", _far, _LOWER),
    _Rule("KL large", _kl_far, _LOWER),
    _Rule("rewards do not move", _collapsed, _HIGHER),
    _Rule("KL does not move", _kl_still, _HIGHER),
    _Rule("margin negative", _margin_negative, "see that the labels are the right way round"),
    _Rule("margin falling", _margin_falling, _LOWER),
    _Rule("margin flat", _margin_flat, _HIGHER),
    _Rule("gradient norm", _gradient_large, "a longer warmup_ratio helps, and max_grad_norm above 0"),
    _Rule("loss above its start", _loss_rising, _LOWER),
    _Rule("no better than untrained", _nothing_learned, "the sweep's other trials may do better"),
)


class Health:
    """Looks after one trial."""

    def __init__(self, trial: Judged) -> None:
        self._history = History(trial)
        self._told: dict[str, int] = {}
        """The step at which each sign that was told was last seen."""

    def see(self, step: int, row: Mapping[str, float]) -> list[Finding]:
        """What there is to say now that `row` was logged at `step`: signs that are new."""
        self._history.add(step, row)
        found = []
        for rule in _RULES:
            problem = rule.check(self._history)
            if problem and self._is_new(rule, step):
                advice = f"; {rule.advice}" if rule.advice else ""
                found.append(Finding(rule.title, f"{problem}{advice}", rule.fatal))
        return found

    def _is_new(self, rule: _Rule, step: int) -> bool:
        last = self._told.get(rule.title)
        self._told[rule.title] = step
        return last is None or step - last > WINDOW
