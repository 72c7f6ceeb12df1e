"""The learning rate of each optimizer step. No torch here."""

import math
from collections.abc import Callable

SCHEDULES = ("cosine", "linear", "constant")


def warmup_steps(total_steps: int, warmup_ratio: float) -> int:
    """Steps of linear warm-up, rounded up as transformers' TrainingArguments does."""
    return math.ceil(total_steps * warmup_ratio)


def lr_factor(kind: str, step: int, warmup: int, total_steps: int) -> float:
    """What the learning rate is multiplied by at optimizer step `step`, counted from 0.

    The values of transformers' get_{cosine,linear,constant}_schedule_with_warmup: with warm-up, the very
    first step has learning rate 0.

    >>> [round(lr_factor("cosine", step, 2, 6), 3) for step in range(7)]
    [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return step / max(1, warmup)
    decay: dict[str, Callable[[float], float]] = {
        "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": lambda progress: 1 - progress,
        "constant": lambda progress: 1.0,
    }
    progress = (step - warmup) / max(1, total_steps - warmup)
    return max(0.0, decay[kind](progress))
