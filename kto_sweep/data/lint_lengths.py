"""Statistics of row lengths: percentiles, a histogram by label, and the AUC of length for the label."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kto_sweep.data.auc import auc
from kto_sweep.data.table import Numbers, RowTable

BINS = 12
"""Bars of a histogram at most, without the open-ended last one."""


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of lengths, as lengths that occur in the data."""

    min: int
    p50: int
    p90: int
    p95: int
    p99: int
    max: int


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram."""

    low: int
    """Shortest length in the bar."""
    high: int | None
    """Longest length in the bar; None: open-ended."""
    desirable: int
    undesirable: int


@dataclass(frozen=True)
class LengthReport:
    """Statistics of lengths; None or empty where there are no such rows."""

    prompt: Percentiles | None
    completion: Percentiles | None
    desirable: Percentiles | None
    """Completions of desirable rows."""
    undesirable: Percentiles | None
    total: Percentiles | None
    """Prompt and completion together, which max_length limits."""
    auc: float | None
    """Probability that a desirable completion is longer than an undesirable one; None without both labels."""
    histogram: tuple[Bin, ...]
    """Of `total`."""


def report_lengths(table: RowTable) -> LengthReport:
    """Statistics of the lengths."""
    labels, total = table.labels, table.prompt_lengths + table.completion_lengths
    good, bad = table.completion_lengths[labels], table.completion_lengths[~labels]
    return LengthReport(
        prompt=percentiles(table.prompt_lengths),
        completion=percentiles(table.completion_lengths),
        desirable=percentiles(good),
        undesirable=percentiles(bad),
        total=percentiles(total),
        auc=auc(good.astype(float), bad.astype(float)) if good.size and bad.size else None,
        histogram=histogram(total, labels),
    )


def percentiles(lengths: Numbers) -> Percentiles | None:
    """Percentiles of the lengths; None when there are none.

    >>> percentiles(np.arange(1, 201))
    Percentiles(min=1, p50=100, p90=180, p95=190, p99=198, max=200)
    """
    if not lengths.size:
        return None
    values = np.percentile(lengths, [0, 50, 90, 95, 99, 100], method="inverted_cdf")
    return Percentiles(*(int(length) for length in values))


def histogram(lengths: Numbers, labels: NDArray[np.bool_]) -> tuple[Bin, ...]:
    """Bars of one round width up to the 99th percentile, and an open-ended one above.

    >>> histogram(np.array([3, 12, 14]), np.array([True, True, False]))[:2]
    (Bin(low=2, high=3, desirable=1, undesirable=0), Bin(low=4, high=5, desirable=0, undesirable=0))
    """
    if not lengths.size:
        return ()
    longest = int(np.percentile(lengths, 99, method="inverted_cdf"))
    step = _round_step((longest + 1) / BINS)
    closed = longest // step + 1
    at = np.minimum(lengths // step, closed)
    counts = np.stack([np.bincount(at[side], minlength=closed + 1) for side in (labels, ~labels)], axis=1)
    return tuple(
        Bin(i * step, (i + 1) * step - 1 if i < closed else None, int(counts[i, 0]), int(counts[i, 1]))
        for i in range(int(at.min()), int(at.max()) + 1)
    )


def _round_step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is not below `least`."""
    power: int = 10 ** math.floor(math.log10(max(least, 1.0)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least)
