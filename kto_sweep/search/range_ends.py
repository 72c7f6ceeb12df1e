"""Where a searched range ends, and how it continues beyond an end.

A best value at an end says that a better one may lie beyond it.
"""

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

from kto_sweep.parameter_types import Real, WholeNumber
from kto_sweep.search.distributions import Categorical, Continuous, IntUniform, Value
from kto_sweep.search.space import SEED, Parameter
from kto_sweep.text import is_number
from kto_sweep.trial import PARAMETERS, check_value, parameter_name

RangeEnd: TypeAlias = Literal["low", "high", ""]
Bounds: TypeAlias = tuple[int | float, int | float]

EDGE = 0.05
"""A value this close to an end of a range, as a share of the range, counts as at the end."""
MIN_VALUES = 3
"""With fewer listed values, every value is at an end, which says little."""
NEW_VALUES = 2
"""Number of values that a list gets beyond its end."""
MAX_RATIO = 10.0
"""A range on a log scale grows by at most this factor."""


def range_end(parameter: Parameter, value: Value, *, min_values: int = MIN_VALUES) -> RangeEnd:
    """The end of the searched range at which `value` is, if the range can continue beyond that end.

    Empty for a value inside the range, for a list of less than `min_values` numbers or with other values, for
    distributions without ends, for the seed, and at an end beyond which the parameter has no valid value.
    """
    if parameter.path[-1] == SEED or not is_number(value):
        return ""
    end = _end_of(parameter, value, min_values)
    return end if end and widened_entry(parameter, end) is not None else ""


def widened_entry(parameter: Parameter, end: RangeEnd) -> dict[str, Any] | None:
    """The parameter's entry of a sweep file that reaches beyond `end`; None if no valid value lies there.

    A list gets NEW_VALUES values in its own ratio or step; a range grows by its width, or on a log scale by
    its ratio, at most MAX_RATIO.
    """
    distribution = parameter.distribution
    if isinstance(distribution, Categorical):
        return _widened_list(parameter, distribution, end)
    if isinstance(distribution, IntUniform):
        low, high = distribution.min, distribution.max
        beyond: float = high + (high - low) if end == "high" else low - (high - low)
        return _widened_range(parameter, "int_uniform", (low, high), end, beyond)
    if not isinstance(distribution, Continuous) or distribution.bounds is None:
        return None
    name, bounds, q = distribution.name, distribution.bounds, distribution.q
    if distribution.log and not name.endswith("_values"):
        # Exponents become values, which W&B prefers; 1/x of a log-uniform x is log-uniform too.
        name = "log_uniform_values" if q is None else "q_log_uniform_values"
    entry = _widened_range(parameter, name, bounds, end, _beyond(parameter, distribution, bounds, end))
    return entry if entry is None or q is None else {**entry, "q": q}


def _beyond(parameter: Parameter, distribution: Continuous, bounds: Bounds, end: RangeEnd) -> float:
    """The wider end of a continuous range; with q, the farthest step of it whose value is valid."""
    (low, high), q = bounds, distribution.q
    sign, old = (1, high) if end == "high" else (-1, low)
    if distribution.log:
        ratio = min(high / low, MAX_RATIO)
        beyond = float(f"{old * ratio**sign:.4g}")
        first = 0.0  # values are multiples of q
    else:
        count = distribution.cell_count()
        beyond = old + sign * (high - low if count is None or q is None else count * q)
        first = low  # a grid counts its steps from min: those must stay its cells
    if q is None:
        return _rounded(beyond)
    steps, old_steps = round((beyond - first) / q), round((old - first) / q)
    ends = (_rounded(first + step * q) for step in range(steps, old_steps, -sign))
    return next((number for number in ends if _fit(parameter, number) is not None), old)


def _rounded(number: float) -> float:
    return number if isinstance(number, int) else float(f"{number:.10g}")


def _end_of(parameter: Parameter, value: float, min_values: int) -> RangeEnd:
    distribution = parameter.distribution
    if isinstance(distribution, Categorical):
        numbers = _numbers(distribution)
        if len(numbers) < min_values or not all(map(is_number, distribution.values)):
            return ""
        return "high" if value == numbers[-1] else "low" if value == numbers[0] else ""
    low, high = distribution.extremes()
    count = distribution.cell_count()
    if isinstance(distribution, Continuous) and distribution.q is not None and count is not None:
        high = low + max(0.5, count - 1.5) * distribution.q  # half a step below a grid's last cell
    share = distribution.cdf(value)
    if value >= high or share > 1 - EDGE:
        return "high"
    return "low" if value <= low or share < EDGE else ""


def _numbers(distribution: Categorical) -> list[int | float]:
    return sorted({number for number in distribution.values if is_number(number)})


def _widened_list(parameter: Parameter, distribution: Categorical, end: RangeEnd) -> dict[str, Any] | None:
    numbers = _numbers(distribution)
    if len(numbers) < 2 or len(numbers) < len(distribution.values):
        return None
    outward = numbers if end == "high" else numbers[::-1]
    added: list[int | float] = []
    for number in _continued(outward, whole=all(isinstance(number, int) for number in numbers)):
        fitting = _fit(parameter, number)
        if fitting is None or fitting in (*numbers, *added):
            break
        added.append(fitting)
    if not added:
        return None
    new = [*distribution.values, *added] if end == "high" else [*added[::-1], *distribution.values]
    if distribution.probabilities is None:
        return {"values": new}
    # Each new value is as likely as an average old one.
    old = [share * len(numbers) / len(new) for share in distribution.probabilities]
    extra = [1 / len(new)] * len(added)
    return {"values": new, "probabilities": [*old, *extra] if end == "high" else [*extra, *old]}


def _continued(outward: Sequence[int | float], *, whole: bool) -> Iterator[int | float]:
    """The next NEW_VALUES numbers of a sequence, in its own ratios or in its last step."""
    before, last = outward[-2:]
    positive = [float(number) for number in outward if number > 0]
    is_geometric = _is_geometric(outward) and before > 0 < last
    period = _period(positive)
    for count in range(1, NEW_VALUES + 1):
        if is_geometric:
            positive.append(positive[-1] * positive[-period] / positive[-period - 1])
        number = positive[-1] if is_geometric else last + (last - before) * count
        rounded = float(f"{number:.4g}")
        yield int(rounded) if whole and rounded.is_integer() else rounded


def _period(numbers: Sequence[float]) -> int:
    """After how many numbers the ratios repeat: 2 for 1, 3, 10, which 30 and 100 continue."""
    for period in range(1, len(numbers)):
        decades = math.log10(numbers[-1] / numbers[-1 - period])
        if math.isclose(decades, round(decades), abs_tol=1e-6):
            return period
    return min(2, len(numbers) - 1)


def _is_geometric(numbers: Sequence[int | float]) -> bool:
    """Whether the ratios of neighbours are more alike than their distances; two numbers have a ratio."""
    steps = [abs(b - a) for a, b in itertools.pairwise(numbers)]
    positive = [number for number in numbers if number > 0]
    ratios = [abs(math.log(b / a)) for a, b in itertools.pairwise(positive)]
    if not ratios or min(numbers) < 0:
        return False
    if len(ratios) < len(steps):  # 0 has no ratio: 0, 0.05, 0.1 are steps; 0, 0.01, 0.1 are not
        return _spread(steps) > 0.1
    return _spread(ratios) <= _spread(steps)


def _spread(distances: Sequence[float]) -> float:
    return statistics.pstdev(distances) / statistics.fmean(distances)


def _widened_range(
    parameter: Parameter, name: str, bounds: Bounds, end: RangeEnd, beyond: int | float
) -> dict[str, Any] | None:
    low, high = bounds
    old = high if end == "high" else low
    fitting = _fit(parameter, beyond, old)
    if fitting is None or fitting == old:
        return None
    low, high = (low, fitting) if end == "high" else (fitting, high)
    return {"distribution": name, "min": low, "max": high}


def _fit(parameter: Parameter, number: int | float, old: int | float | None = None) -> int | float | None:
    """The number if it is valid for the parameter; with an `old` end, else the farthest valid one.

    Where the limit itself is not valid, the farthest is halfway between the old end and the limit.
    """
    name = parameter_name(parameter.path)
    if name is None:
        return number
    kind = PARAMETERS[name].type
    if isinstance(kind, WholeNumber) and old is None:
        number = round(number)
    if check_value(name, number)[1] is None:
        return number
    if old is None or not isinstance(kind, WholeNumber | Real):
        return None
    if isinstance(kind, WholeNumber):
        return kind.least if number < old else kind.most
    limit, included = (kind.low, kind.with_low) if number < old else (kind.high, kind.with_high)
    return limit if included else float(f"{(old + limit) / 2:.4g}")
