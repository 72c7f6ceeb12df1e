"""Area under the ROC curve: how well one number separates two groups."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def auc(higher: Floats, lower: Floats) -> float:
    """The probability that a value of `higher` exceeds one of `lower`; ties count half. 0.5: no difference.

    Neither may be empty. NaN when any value is NaN.

    >>> auc(np.array([3.0, 1.0]), np.array([2.0, 0.0]))  # 3 of the 4 pairs are in order
    0.75
    >>> auc(np.array([1.0, 1.0]), np.array([1.0]))
    0.5
    """
    values = np.concatenate([higher, lower])
    if np.isnan(values).any():
        return float("nan")
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[group]  # ties share their mean rank, counted from 1
    above = ranks[: higher.size].sum() - higher.size * (higher.size + 1) / 2.0  # Mann-Whitney's U
    return float(above / (higher.size * lower.size))
