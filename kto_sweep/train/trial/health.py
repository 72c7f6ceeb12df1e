"""Signs of trouble in the rows that a trial logs. Pure: a row in, issues out; at the end, a judgement of all.

Rewards are judged in nats, as log-ratios (reward / beta), so that every beta has the same thresholds, and by
their mean and trend over a window, because one batch is too noisy. Each sign is reported once, and again only
after it has been absent for a whole window. The thresholds are from runs of small models: healthy ones ended
with desirable completions 0 to 30 nats above the reference and a raw KL estimate within 25 nats of 0; broken
ones ended 150 to 430 nats below it with a raw KL of -150 to -1400, and none of them recovered.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from kto_sweep.text import counted, number
from kto_sweep.train.trial.row_history import (
    EVAL_METRICS,
    GRADIENT,
    LOST,
    STILL,
    UNTRAINED,
    WINDOW,
    HealthContext,
    History,
    not_finite,
)
from kto_sweep.train.trial.stability import (
    evaluation_advice,
    judge,
    not_finite_advice,
    not_finite_text,
)

FAR = 20.0
"""Nats below the reference for a warning."""

KL_LOST, KL_FAR = 200.0, 100.0
"""Nats of the raw KL estimate, positive or negative: to fail a trial while it grows, and for a warning."""

SATURATED = 3.0
"""beta * KL beyond which the reference point saturates the loss: 5 % of its slope is left."""

KL_STILL = 0.001
"""Nats of the raw KL estimate that count as no change."""

MARGIN = 1.0
"""Nats of margin for a warning."""

SPIKE = 20.0
"""Times the median of the last steps at which the gradient norm is a spike."""

UNUSABLE = 5
"""Steps of the last RECENT with a value that is not finite at which a trial has failed, in a row or not.

A packed step without a finite gradient changes no weight, one of TRL's spoils them. Single batches that
overflow do not fail a trial: at one in 20 steps, by chance, one window in 16,000 has 5 of them.
"""


@dataclass(frozen=True)
class HealthIssue:
    """A sign of trouble in a trial."""

    title: str
    text: str
    """The number, and what to try."""
    fatal: bool = False
    """Whether the trial cannot recover."""


def _loss_not_finite(history: History) -> str:
    # At once: the loss is bounded, and the reference pass has shown that the untrained model has one for each
    # row. So the weights are broken, which a gradient that overflows in one step does not mean.
    loss = history.last.get("loss", 0.0)
    return "" if math.isfinite(loss) else f"the loss is {loss}"


def _unusable(history: History) -> str:
    bad = sum(bool(names) for names in history.recent)
    if bad < UNUSABLE:
        return ""
    return not_finite_text(history, f"{bad} of the last {counted(len(history.recent), 'step')}")


def _lost(history: History) -> str:
    chosen = history.reward("chosen")
    # A trial that recovers is left alone, however low it is: high learning rates dip early.
    if chosen is None or chosen.mean > -LOST or chosen.rising:
        return ""
    return (
        f"desirable completions are {number(-chosen.mean)} nats less likely than before training "
        f"(rewards/chosen {number(chosen.mean * history.trial.beta)}), and not recovering"
    )


def _kl_diverged(history: History) -> str:
    kl = history.trend("kl_raw")
    # Away from 0 in either direction: the estimate of a broken model is mostly negative.
    if kl is None or abs(kl.mean) < KL_LOST or not (kl.rising if kl.mean > 0 else kl.falling):
        return ""
    return f"the raw KL estimate is {number(kl.mean)} nats and growing"


def _step_not_finite(history: History) -> str:
    now = history.recent[-1] if history.recent else []
    return ", ".join(f"{name} is {history.last[name]}" for name in now)


def _evaluation_not_finite(history: History) -> str:
    names = not_finite(history.last, EVAL_METRICS)
    return ", ".join(f"{name} is {history.last[name]}" for name in names)


def _far(history: History) -> str:
    chosen = history.reward("chosen")
    # The confidence bound, not the mean: one window's noise must not warn.
    if chosen is None or chosen.below > -FAR:
        return ""
    return f"desirable completions are {number(-chosen.mean)} nats less likely than before training"


def _kl_far(history: History) -> str:
    kl = history.trend("kl_raw")
    if kl is None:
        return ""
    if abs(kl.mean) > KL_FAR:
        return f"the raw KL estimate is {number(kl.mean)} nats"
    # Only a large positive z0 saturates the loss; negative ones are clamped to 0.
    if history.trial.beta * kl.mean > SATURATED:
        return f"the KL estimate is {number(kl.mean)} nats: at this beta it saturates the loss"
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
    return f"the margin is {number(margin.mean)} nats: undesirable completions gain more than desirable ones"


def _margin_falling(history: History) -> str:
    margin = history.margin()
    # In proportion to the margin: a large one varies more in nats.
    if margin is None or not margin.falling or -margin.change < max(MARGIN, 0.1 * abs(margin.mean)):
        return ""
    fall = f"{number(-margin.change)} nats within {WINDOW} steps"
    return f"the margin has fallen by {fall}, to {number(margin.mean)} nats"


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
        return ""  # reported by _step_not_finite
    usual = history.window("grad_norm")  # with this step: the median ignores one spike
    if norm > GRADIENT * history.trial.beta:
        return f"the gradient norm is {number(norm)}"
    # The second condition: 20 times a tiny norm is still harmless.
    if usual and norm > SPIKE * median(usual) and norm > GRADIENT * history.trial.beta / 20:
        return f"the gradient norm jumped to {number(norm)}, from about {number(median(usual))}"
    return ""


def _loss_rising(history: History) -> str:
    loss, before = history.trend("loss"), history.trial.untrained_loss
    # Significantly above what an untrained model has: batches vary around it at the start.
    if loss is None or loss.above < before:
        return ""
    return f"the loss is {number(loss.mean)}; before training it was {number(before)}"


def _nothing_learned(history: History) -> str:
    loss = history.last.get("eval/common_loss")
    # In the second half only: evaluations during the warm-up are all at 0.5.
    if loss is None or not loss >= UNTRAINED or 2 * history.step < history.trial.steps:
        return ""
    return f"eval/common_loss is {number(loss)} at step {history.step}: no better than before training"


_LOWER = "try a lower learning_rate"
_LOWER_OR_BETA = f"{_LOWER} or a larger beta"
_HIGHER = "if it stays there, try a higher learning_rate"


@dataclass(frozen=True)
class _Rule:
    title: str
    check: Callable[[History], str]
    """What is wrong, or an empty text."""
    advice: str | Callable[[History], str] = ""
    """What to try."""
    fatal: bool = False


_RULES = (
    _Rule("loss not finite", _loss_not_finite, not_finite_advice, fatal=True),
    _Rule("not finite", _unusable, not_finite_advice, fatal=True),
    _Rule("diverged", _lost, _LOWER_OR_BETA, fatal=True),
    _Rule("KL diverged", _kl_diverged, _LOWER_OR_BETA, fatal=True),
    _Rule("step not finite", _step_not_finite, not_finite_advice),
    _Rule("evaluation not finite", _evaluation_not_finite, evaluation_advice),
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
                advice = rule.advice if isinstance(rule.advice, str) else rule.advice(self._history)
                issues.append(HealthIssue(rule.title, "; ".join(filter(None, (problem, advice))), rule.fatal))
        return issues

    def judge(self) -> str:
        """Why a trial that has taken its last step is unstable, in one sentence; empty for a stable one."""
        return judge(self._history)

    def _is_new(self, rule: _Rule, step: int) -> bool:
        last = self._last_seen.get(rule.title)
        self._last_seen[rule.title] = step  # also while it stays: then it is not new
        return last is None or step - last > WINDOW
