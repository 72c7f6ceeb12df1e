"""The distributions of a W&B sweep's parameters, each as a mapping between [0, 1] and its values.

Formulas and names follow W&B's `sweeps` package. `ppf` is the inverse of the
cumulative distribution function (the "percent point function"): uniform u in, value out.
Values are plain Python numbers, strings, lists and dicts, so they can be sent as JSON.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate
from statistics import NormalDist
from typing import Any, Protocol, TypeAlias

Value: TypeAlias = Any
"""A JSON value: None, bool, int, float, str, list or dict."""

_TAIL = 1e-12
"""Normal and beta distributions are truncated here on both sides (7 standard deviations) to stay finite."""


def value_key(value: Value) -> object:
    """A hashable key, equal for values that W&B's grid treats as equal: 3 and 3.0, but not 1 and True."""
    if isinstance(value, bool) or value is None:
        return (type(value).__name__, value)
    if isinstance(value, int | float):
        return ("number", value)
    if isinstance(value, list | tuple):
        return ("list", tuple(value_key(item) for item in value))
    if isinstance(value, dict):
        return ("dict", tuple(sorted((str(key), value_key(item)) for key, item in value.items())))
    return ("text", str(value))


class Distribution(Protocol):
    """The distribution of one parameter, as a search sees it."""

    @property
    def name(self) -> str:
        """W&B's name of the distribution."""

    def ppf(self, u: float) -> Value:
        """The value at `u` in [0, 1]."""

    def cdf(self, value: Value) -> float:
        """The coordinate of `value` in [0, 1], such that `ppf(cdf(value))` is `value` again.

        A discrete value takes the middle of its interval. Raises ValueError for a value of another kind.
        """

    def cells(self) -> tuple[Value, ...] | None:
        """The values that a grid visits, in order; None if a grid cannot list them."""

    def cell_count(self) -> int | None:
        """The number of distinct cells; None if a grid cannot list them."""

    def extremes(self) -> tuple[Value, ...]:
        """The values to check before a sweep starts: every listed one, or the two ends.

        For a normal distribution the ends are its 0.001 and 0.999 quantiles.
        """


@dataclass(frozen=True)
class Categorical:
    """constant, categorical and categorical_w_probabilities: one of the listed values."""

    values: tuple[Value, ...]
    probabilities: tuple[float, ...] | None = None
    """One per value, summing to 1; None: all equal."""

    @property
    def name(self) -> str:
        """W&B's name of the distribution."""
        if self.probabilities is not None:
            return "categorical_w_probabilities"
        return "constant" if len(self.values) == 1 else "categorical"

    def ppf(self, u: float) -> Value:
        """The value whose interval of [0, 1] holds `u`."""
        # bisect_right skips the empty interval of a value of probability 0; min() handles u = 1.
        edges = self._edges()
        last = max(i for i in range(len(self.values)) if edges[i + 1] > edges[i])
        return self.values[min(bisect_right(edges, u) - 1, last)]

    def cdf(self, value: Value) -> float:
        """The middle of the interval of `value`. Raises ValueError for a value that is not listed."""
        keys = [value_key(listed) for listed in self.values]
        index = keys.index(value_key(value))
        edges = self._edges()
        return (edges[index] + edges[index + 1]) / 2

    def cells(self) -> tuple[Value, ...] | None:
        """The listed values; None with probabilities, which a grid does not support."""
        return None if self.probabilities is not None else self.values

    def cell_count(self) -> int | None:
        """The number of different listed values; None with probabilities."""
        return None if self.probabilities is not None else len({value_key(v) for v in self.values})

    def extremes(self) -> tuple[Value, ...]:
        """All listed values."""
        return self.values

    def _edges(self) -> Sequence[float]:
        n = len(self.values)
        if self.probabilities is None:
            return [i / n for i in range(n + 1)]
        # Rounding errors can make the sum differ from 1, but the last edge must be 1.
        total = math.fsum(self.probabilities)
        return [0.0, *(part / total for part in accumulate(self.probabilities))]


@dataclass(frozen=True)
class IntUniform:
    """int_uniform: whole numbers, both ends included."""

    min: int
    max: int

    @property
    def name(self) -> str:
        """W&B's name of the distribution."""
        return "int_uniform"

    def ppf(self, u: float) -> int:
        """The whole number whose interval of [0, 1] holds `u`."""
        return min(self.max, self.min + math.floor(u * self.cell_count()))

    def cdf(self, value: Value) -> float:
        """The middle of the interval of `value`, 0 or 1 beyond the ends."""
        return _clip((_number(value) - self.min + 0.5) / self.cell_count())

    def cells(self) -> tuple[Value, ...]:
        """Every whole number from min to max."""
        return tuple(range(self.min, self.max + 1))

    def cell_count(self) -> int:
        """The number of whole numbers."""
        return self.max - self.min + 1

    def extremes(self) -> tuple[Value, ...]:
        """Both ends."""
        return (self.min, self.max)


class ContinuousBase(Protocol):
    """A continuous distribution before exponentiation and rounding."""

    def ppf(self, u: float) -> float:
        """The value at `u` in [0, 1]; finite."""

    def cdf(self, x: float) -> float:
        """The share of values below `x`."""


@dataclass(frozen=True)
class Uniform:
    """Base of the uniform and log-uniform families."""

    low: float
    high: float

    def ppf(self, u: float) -> float:
        """low + u (high - low)."""
        return self.low + u * (self.high - self.low)

    def cdf(self, x: float) -> float:
        """(x - low) / (high - low), between 0 and 1."""
        return _clip((x - self.low) / (self.high - self.low))


@dataclass(frozen=True)
class Normal:
    """Base of the normal and log-normal families."""

    mu: float
    sigma: float

    def ppf(self, u: float) -> float:
        """mu + sigma z(u), with u kept away from 0 and 1."""
        return NormalDist(self.mu, self.sigma).inv_cdf(_inside(u))

    def cdf(self, x: float) -> float:
        """erfc form of the normal distribution: exact in the lower tail too."""
        return math.erfc((self.mu - x) / (self.sigma * math.sqrt(2))) / 2


@dataclass(frozen=True)
class Beta:
    """Base of the beta family, on [0, 1]."""

    a: float
    b: float

    def ppf(self, u: float) -> float:
        """Inverse of the regularised incomplete beta function, with u kept away from 0 and 1."""
        from scipy.special import betaincinv  # slow to import, and only this family needs it

        return float(betaincinv(self.a, self.b, _inside(u)))

    def cdf(self, x: float) -> float:
        """The regularised incomplete beta function."""
        from scipy.special import betainc

        return float(betainc(self.a, self.b, _clip(x)))


@dataclass(frozen=True)
class Continuous:
    """All continuous families: a base, optionally exponentiated, optionally rounded to multiples of q."""

    name: str
    """W&B's name of the distribution."""
    base: ContinuousBase
    log: bool = False
    """True: the value is e to the power of the base's value."""
    q: int | float | None = None
    """Values are rounded to multiples of q; whole numbers when q is an int."""
    bounds: tuple[int | float, int | float] | None = None
    """Ends to which values are clamped against rounding errors of log and exp; before rounding to q."""

    def ppf(self, u: float) -> int | float:
        """The value at `u`: round(x / q) q, where x is the base's value or its exponential."""
        x = self._unrounded(u)
        return x if self.q is None else _multiple(round(x / self.q), self.q)

    def cdf(self, value: Value) -> float:
        """The coordinate of `value`; with q, the middle of the interval that rounds to it."""
        x = _number(value)
        if self.q is None:
            return self._share_below(x)
        return (self._share_below(x - self.q / 2) + self._share_below(x + self.q / 2)) / 2

    def cells(self) -> tuple[Value, ...] | None:
        """q_uniform: min, min + q, ... below max. Others: None."""
        count = self.cell_count()
        if count is None or self.bounds is None or self.q is None:
            return None
        low, step = self.bounds[0], self.q
        if isinstance(low, int) and isinstance(step, int):
            return tuple(low + i * step for i in range(count))
        # In decimals, so that 0.1, 0.2, 0.3 stay as written.
        return tuple(float(_decimal(low) + i * _decimal(step)) for i in range(count))

    def cell_count(self) -> int | None:
        """q_uniform: the number of steps of q from min below max. Others: None."""
        if self.name != "q_uniform" or self.bounds is None or self.q is None:
            return None
        low, high = map(_decimal, self.bounds)
        return math.ceil((high - low) / _decimal(self.q))

    def extremes(self) -> tuple[Value, ...]:
        """Both ends, or the 0.001 and 0.999 quantiles of an unbounded distribution."""
        edge = 0.001 if isinstance(self.base, Normal) else 0.0
        return (self.ppf(edge), self.ppf(1 - edge))

    def _unrounded(self, u: float) -> float:
        if self.bounds is not None and u in (0, 1):
            return float(self.bounds[int(u)])
        x = self.base.ppf(u)
        if self.log:
            x = math.exp(x)
        return x if self.bounds is None else min(max(x, self.bounds[0]), self.bounds[1])

    def _share_below(self, x: float) -> float:
        if not self.log:
            return self.base.cdf(x)
        return self.base.cdf(math.log(x)) if x > 0 else 0.0


def _number(value: Value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    return value


def _clip(x: float) -> float:
    return min(1.0, max(0.0, x))


def _inside(u: float) -> float:
    return min(max(u, _TAIL), 1 - _TAIL)


def _decimal(x: float) -> Decimal:
    return Decimal(repr(x))


def _multiple(k: int, q: float) -> int | float:
    """K times q; in decimals, because 3 * 0.1 is 0.30000000000000004 in floats."""
    return k * q if isinstance(q, int) else float(k * _decimal(q))
