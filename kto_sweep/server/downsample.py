"""Long curves made short enough to draw, with every peak and dip that a person would see."""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def downsample(values: Numbers, points: int) -> NDArray[np.intp]:
    """The positions of at most `points` values (at least 4) that stand for all of them, ascending.

    The first and the last are among them, and of each of the equal stretches between these two the lowest and
    the highest: the picture keeps its envelope, and no spike is lost. `values` must be finite.
    """
    count = len(values)
    if count <= max(points, 4):
        return np.arange(count)
    stretches = (max(points, 4) - 2) // 2
    length = -(-(count - 2) // stretches)
    # The last stretch is filled up with the value before the last point, which is in it anyway.
    padded = np.full(stretches * length, values[-2])
    padded[: count - 2] = values[1:-1]
    table = padded.reshape(stretches, length)
    starts = np.arange(stretches) * length + 1
    chosen = np.concatenate([[0], starts + table.argmin(axis=1), starts + table.argmax(axis=1), [count - 1]])
    return np.unique(np.minimum(chosen, count - 1))


def round_significant(values: Numbers, digits: int = 6) -> Numbers:
    """The finite values to so many significant digits, which is what a picture can show."""
    magnitude = np.floor(np.log10(np.abs(values), where=values != 0, out=np.zeros_like(values)))
    # Beyond these exponents the factor itself would overflow; such values are left as they are.
    usable = np.abs(magnitude) < 290
    factor = 10.0 ** np.where(usable, digits - 1 - magnitude, 0)
    return np.where(usable, np.round(values * factor) / factor, values)
