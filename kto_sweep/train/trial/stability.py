"""Whether a trial's training broke, judged over all its steps once it has taken the last one. Pure.

A trial of any length is judged, by shares of its steps: the rules of health.py that fail a trial while it
trains need windows of steps that a short one does not have. A trial that broke reaches its last step with an
evaluation near the untrained one, which may rank before trials that trained badly but soundly.

An unstable trial
* had values that were not finite in a tenth of its steps, which changed nothing or spoiled the weights;
* or ends with an evaluation that is not finite;
* or had gradients of CLIPPED times max_grad_norm in nearly all steps after the warm-up, and learned nothing;
* or ends with desirable completions LOST nats below the reference, and learned nothing.

Being clipped is no fault in itself. Adam's updates do not depend on the scale of the gradient: a model whose
gradients are all large (many tokens, a large lora_alpha / lora_r) trains well with every step clipped, and so
does one with ordinary gradients and a small max_grad_norm, which HealthContext.exploded_norm leaves out.
Exploded gradients vary over orders of magnitude: each step is one direction, drawn at random, at full length.
The two differ in what came of them: eval/common_loss, or the training loss of a trial without evaluations.
"""

import math
from collections.abc import Sequence

from kto_sweep.text import counted, number
from kto_sweep.train.trial.row_history import EVAL_METRICS, LOST, UNTRAINED, History, not_finite

BAD_SHARE = 0.1
"""Share of steps with a value that is not finite; one step alone is too few, unless it is the only one."""

NEARLY_ALL = 0.9
"""Share of the steps after the warm-up."""

FEWEST = 3
"""Steps after the warm-up that can be called nearly all."""


def judge(history: History) -> str:
    """Why the trial is unstable, with numbers and what to try; empty for a stable one."""
    rules = (_bad_steps, _bad_evaluation, _exploded, _lost)
    return next(filter(None, (rule(history) for rule in rules)), "")


def not_finite_text(history: History, where: str) -> str:
    """`grad_norm is inf or nan in 5 of the last 10 steps, first at step 14`."""
    names = ", ".join(history.not_finite)
    verb = "is" if len(history.not_finite) == 1 else "are"
    return f"{names} {verb} inf or nan in {where}, first at step {min(history.not_finite.values())}"


def not_finite_advice(history: History) -> str:
    """What to try against values that are not finite."""
    # The rows of these steps are measured before the first update: warm-up starts with learning rate 0.
    untrained = 2 if history.trial.warmup else 1
    if min(history.not_finite.values(), default=math.inf) <= untrained:
        return "the untrained model has them too: check the model, its quantization and the rows"
    return _calmer(history)


def evaluation_advice(history: History) -> str:
    """What to try against an evaluation that is not finite."""
    advice = not_finite_advice(history)
    return advice if history.not_finite else f"{advice}; if all trials have it, check the held-out rows"


def _calmer(history: History) -> str:
    unclipped = "" if history.trial.max_grad_norm else ", or max_grad_norm: 1"
    return f"try a lower learning_rate, a larger warmup_ratio{unclipped}"


def _bad_steps(history: History) -> str:
    bad, steps = history.bad_steps, history.steps
    if not bad or bad < min(2, steps) or bad < BAD_SHARE * steps:
        return ""
    where = f"{bad} of {counted(steps, 'step')}"
    return f"{not_finite_text(history, where)}; {not_finite_advice(history)}"


def _bad_evaluation(history: History) -> str:
    names = not_finite(history.last, EVAL_METRICS)
    if not names:
        return ""
    values = ", ".join(f"{name} is {history.last[name]}" for name in names)
    return f"{values} at step {history.step}, the last; {evaluation_advice(history)}"


def _exploded(history: History) -> str:
    steps, exploded = history.steps_after_warmup, history.exploded_steps
    if steps < FEWEST or exploded < NEARLY_ALL * steps or not (result := _nothing_learned(history)):
        return ""
    norm, limit = history.trial.exploded_norm, history.trial.max_grad_norm
    times = f", {number(norm / limit)} times max_grad_norm," if limit else ""
    return (
        f"grad_norm is above {number(norm)}{times} in {exploded} of {counted(steps, 'step')} after warm-up "
        f"({number(history.last['grad_norm'])} at step {history.step}, the last), and {result}; "
        f"{_calmer(history)}"
    )


def _lost(history: History) -> str:
    rewards = history.end("rewards/chosen")
    if not rewards or not (result := _nothing_learned(history)):
        return ""
    nats = _mean(rewards) / history.trial.beta
    if nats > -LOST:
        return ""
    return (
        f"desirable completions are {number(-nats)} nats less likely than before training "
        f"(rewards/chosen {number(_mean(rewards))} up to step {history.step}, the last), and {result}; "
        "try a lower learning_rate or a larger beta"
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)  # not fmean: it raises OverflowError where this is infinite


def _nothing_learned(history: History) -> str:
    """That the trial ends no better than untrained, with the number; empty if it has learned."""
    loss = history.last.get("eval/common_loss")
    if loss is not None:
        return "" if loss < UNTRAINED else f"eval/common_loss {number(loss)} is no better than untrained"
    losses, before = history.end("loss"), history.trial.untrained_loss
    if losses and _mean(losses) < before:
        return ""
    return f"the loss is no better than untrained ({number(before)})"
