"""Every metric that a trial logs: name, unit, goal, meaning."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Goal = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Metric:
    """One number (or text) in a run's history or summary."""

    name: str
    unit: str
    goal: Goal | None
    """The better direction; None: neither."""
    meaning: str
    caution: str = ""
    """Why it is a poor metric for a sweep."""


_MARGIN = "it scales with beta and grows without bound, so diverging trials win; eval/common_loss avoids both"
_OWN_LOSS = "its scale depends on beta and loss_type; eval/common_loss compares trials that differ in them"

_TABLE = (
    # Logged during training, each over one optimizer step's batch.
    Metric("loss", "", "minimize", "KTO loss with the trial's own beta and weights", _OWN_LOSS),
    Metric("rewards/chosen", "nats", "maximize", "mean of beta r over desirable completions"),
    Metric("rewards/rejected", "nats", "minimize", "mean of beta r over undesirable completions"),
    Metric("rewards/margins", "nats", "maximize", "rewards/chosen - rewards/rejected", _MARGIN),
    Metric("kl", "nats", None, "z0: estimated KL(policy, reference), clamped at 0"),
    Metric(
        "kl_raw", "nats", None, "the estimate before it is clamped at 0; negative when the policy drifts away"
    ),
    Metric("logps/chosen", "nats", None, "mean log-probability of desirable completions"),
    Metric("logps/rejected", "nats", None, "mean log-probability of undesirable completions"),
    Metric("grad_norm", "", None, "norm of the gradient before clipping"),
    Metric("learning_rate", "", None, "learning rate of the step"),
    Metric("epoch", "epochs", None, "passes over the training data so far"),
    Metric("tokens_per_second", "tokens/s", "maximize", "tokens trained on per second"),
    Metric("gpu/memory_allocated_gb", "GiB", "minimize", "GPU memory in tensors now"),
    Metric("gpu/memory_peak_gb", "GiB", "minimize", "peak GPU memory in tensors so far"),
    Metric("gpu/memory_reserved_gb", "GiB", "minimize", "GPU memory held by the allocator"),
    # Logged at evaluations, each over all held-out rows.
    Metric(
        "eval/common_loss",
        "",
        "minimize",
        "KTO loss at beta 0.1 and rho 1: comparable across trials",
    ),
    Metric("eval/loss", "", "minimize", "KTO loss with the trial's own beta and weights", _OWN_LOSS),
    Metric("eval/auc", "", "maximize", "probability that a desirable completion has the higher reward"),
    Metric("eval/margins", "nats", "maximize", "mean desirable - mean undesirable reward", _MARGIN),
    Metric("eval/dprime", "sd", "maximize", "margin in pooled standard deviations"),
    Metric(
        "eval/desirable_below_ref",
        "",
        "minimize",
        "share of desirable completions less likely than under the reference model",
    ),
    Metric("eval/kl", "nats", None, "z0 over the held-out set, clamped at 0"),
    Metric("eval/kl_raw", "nats", None, "the same before it is clamped at 0"),
    # Only in a run's summary.
    Metric("objective/best", "", None, "best value of the sweep's metric"),
    Metric("objective/last", "", None, "last value of the sweep's metric"),
    Metric("failure/cause", "text", None, "why the trial failed"),
    Metric("trial/seconds", "s", "minimize", "seconds from the trial's start to its end"),
    Metric("trial/examples", "examples", None, "examples trained on"),
    Metric("trial/steps", "steps", None, "optimizer steps planned"),
    Metric("trial/health", "text", None, "`unstable` if the training broke but reached its last step"),
    Metric(
        "trial/alerts",
        "list",
        None,
        "its last 20 alerts: `level` (INFO, WARN, ERROR), `title`, `text`, `step`",
    ),
    Metric(
        "seed_spread/deviation",
        "",
        None,
        "standard deviation of the sweep's metric between seeds in earlier sweeps of the same model, data "
        "and budget on the box; missing if unknown",
    ),
    Metric("seed_spread/degrees_of_freedom", "", None, "runs minus configurations that it was measured on"),
    Metric("trial/health_message", "text", None, "why it is unstable, with numbers and what to try"),
    Metric("trial/data", "text", None, "fingerprint of the training and held-out rows"),
    Metric(
        "trial/eval_data",
        "text",
        None,
        "fingerprint of the held-out rows: eval/ metrics compare trials that have the same one",
    ),
    Metric("trial/model", "text", None, "precision and fingerprint of the base model's weights"),
)

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _TABLE}

DEFAULT_METRIC = "eval/common_loss"
"""The metric of a sweep whose file sets none; minimized."""

NOT_LOGGED = frozenset(
    {
        "objective/best",
        "objective/last",
        "failure/cause",
        "seed_spread/deviation",
        "seed_spread/degrees_of_freedom",
        "trial/steps",
        "trial/health",
        "trial/alerts",
        "trial/health_message",
        "trial/data",
        "trial/eval_data",
        "trial/model",
    }
)
"""Metrics that are text, or logged only when a run ends, so a search cannot use them."""


def goal_of(name: str) -> Goal:
    """The metric's goal; minimize, W&B's default, if it has none or is unknown."""
    metric = METRICS.get(name)
    return (metric.goal if metric else None) or "minimize"


def summary_value(summary: Mapping[str, Any], name: str, *, maximize: bool = False) -> float | None:
    """The metric's finite value in a run's summary; None without one.

    If `define_metric` made it an object: its extreme by the sweep's goal, else its last value.
    """
    value = finite_number(summary, name)
    is_object = isinstance(summary.get(name.partition(".")[0]), Mapping)
    for part in (".max" if maximize else ".min", ".best", ".last"):
        if value is None and (is_object or name + part in summary):
            value = finite_number(summary, name + part)
    return value


def finite_number(row: Mapping[str, Any], name: str) -> float | None:
    """The finite number at `name`, or at `name` as a dotted path; else None."""
    value: Any = row.get(name)
    if value is None and "." in name:
        value = row
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
