"""Downsamples long curves for plotting and keeps their peaks and dips."""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def downsample(values: Numbers, points: int) -> NDArray[np.intp]:
    """Indices of at most `points` values (at least 4) that represent the curve, ascending.

    Min-max downsampling: keeps the first and last value, and the minimum and maximum of each bucket between
    them, so that no spike is lost. `values` must be finite.
    """
    count = len(values)
    if count <= max(points, 4):
        return np.arange(count)
    buckets = (max(points, 4) - 2) // 2
    length = -(-(count - 2) // buckets)
    # Pad the last bucket with the value before the last point, which belongs to it anyway.
    padded = np.full(buckets * length, values[-2])
    padded[: count - 2] = values[1:-1]
    bucketed = padded.reshape(buckets, length)
    starts = np.arange(buckets) * length + 1
    chosen = np.concatenate(
        [[0], starts + bucketed.argmin(axis=1), starts + bucketed.argmax(axis=1), [count - 1]]
    )
    return np.unique(np.minimum(chosen, count - 1))


def round_significant(values: Numbers, digits: int = 6) -> Numbers:
    """The finite values rounded to `digits` significant digits, enough for a plot."""
    magnitude = np.floor(np.log10(np.abs(values), where=values != 0, out=np.zeros_like(values)))
    # Beyond these exponents the factor would overflow; leave such values unrounded.
    usable = np.abs(magnitude) < 290
    factor = 10.0 ** np.where(usable, digits - 1 - magnitude, 0)
    return np.where(usable, np.round(values * factor) / factor, values)
