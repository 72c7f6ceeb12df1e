"""W&B's 18 distributions: the keys of each in a sweep file, their defaults, and how to build it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kto_sweep.search.distributions import (
    Beta,
    Categorical,
    Continuous,
    Distribution,
    IntUniform,
    Normal,
    Uniform,
)

Number = int | float


@dataclass(frozen=True)
class DistributionForm:
    """The keys of one distribution, and its builder."""

    build: Callable[[dict[str, Any]], Distribution]
    """Builds the distribution from complete, converted keys. Raises OverflowError for a value too large."""
    required: tuple[str, ...] = ()
    defaults: Mapping[str, Number] = field(default_factory=dict)
    positive: tuple[str, ...] = ()
    """Keys whose value must be above 0."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that it accepts."""
        return (*self.required, *self.defaults)


def _continuous(
    name: str, base: Callable[[dict[str, Any]], Uniform | Normal | Beta], *, log: bool = False
) -> Callable[[dict[str, Any]], Distribution]:
    """A builder for an unbounded family."""
    return lambda keys: Continuous(name, base(keys), log=log, q=keys.get("q"))


def _bounded(
    name: str,
    base: Callable[[dict[str, Any]], Uniform],
    ends: Callable[[dict[str, Any]], tuple[Number, Number]] = lambda keys: (keys["min"], keys["max"]),
    *,
    log: bool = False,
) -> Callable[[dict[str, Any]], Distribution]:
    """A builder for a bounded family."""
    return lambda keys: Continuous(name, base(keys), log=log, q=keys.get("q"), bounds=ends(keys))


def _plain(keys: dict[str, Any]) -> Uniform:
    return Uniform(keys["min"], keys["max"])


def _mirrored(keys: dict[str, Any]) -> Uniform:
    # 1/x of a log-uniform x is log-uniform again, between the inverses of its ends.
    return Uniform(-keys["max"], -keys["min"])


def _logs(keys: dict[str, Any]) -> Uniform:
    return Uniform(math.log(keys["min"]), math.log(keys["max"]))


def _powers(keys: dict[str, Any]) -> tuple[Number, Number]:
    return math.exp(keys["min"]), math.exp(keys["max"])


def _inverse_powers(keys: dict[str, Any]) -> tuple[Number, Number]:
    return math.exp(-keys["max"]), math.exp(-keys["min"])


def _normal(keys: dict[str, Any]) -> Normal:
    return Normal(keys["mu"], keys["sigma"])


def _beta(keys: dict[str, Any]) -> Beta:
    return Beta(keys["a"], keys["b"])


_ENDS = ("min", "max")
_Q = {"q": 1.0}
_MU = {"mu": 0.0, "sigma": 1.0}
_AB = {"a": 1.0, "b": 1.0}
_SPREAD = ("sigma", "q")

FORMS: Mapping[str, DistributionForm] = {
    "constant": DistributionForm(lambda keys: Categorical((keys["value"],)), ("value",)),
    "categorical": DistributionForm(lambda keys: Categorical(tuple(keys["values"])), ("values",)),
    "categorical_w_probabilities": DistributionForm(
        lambda keys: Categorical(tuple(keys["values"]), tuple(keys["probabilities"])),
        ("values", "probabilities"),
    ),
    "int_uniform": DistributionForm(lambda keys: IntUniform(keys["min"], keys["max"]), _ENDS),
    "uniform": DistributionForm(_bounded("uniform", _plain), _ENDS),
    "q_uniform": DistributionForm(_bounded("q_uniform", _plain), _ENDS, _Q, ("q",)),
    "log_uniform": DistributionForm(_bounded("log_uniform", _plain, _powers, log=True), _ENDS),
    "log_uniform_values": DistributionForm(_bounded("log_uniform_values", _logs, log=True), _ENDS, {}, _ENDS),
    "inv_log_uniform": DistributionForm(
        _bounded("inv_log_uniform", _mirrored, _inverse_powers, log=True), _ENDS
    ),
    "inv_log_uniform_values": DistributionForm(
        _bounded("inv_log_uniform_values", _logs, log=True), _ENDS, {}, _ENDS
    ),
    "q_log_uniform": DistributionForm(
        _bounded("q_log_uniform", _plain, _powers, log=True), _ENDS, _Q, ("q",)
    ),
    "q_log_uniform_values": DistributionForm(
        _bounded("q_log_uniform_values", _logs, log=True), _ENDS, _Q, (*_ENDS, "q")
    ),
    "normal": DistributionForm(_continuous("normal", _normal), (), _MU, _SPREAD),
    "q_normal": DistributionForm(_continuous("q_normal", _normal), (), _MU | _Q, _SPREAD),
    "log_normal": DistributionForm(_continuous("log_normal", _normal, log=True), (), _MU, _SPREAD),
    "q_log_normal": DistributionForm(_continuous("q_log_normal", _normal, log=True), (), _MU | _Q, _SPREAD),
    "beta": DistributionForm(_continuous("beta", _beta), (), _AB, ("a", "b")),
    "q_beta": DistributionForm(_continuous("q_beta", _beta), (), _AB | _Q, ("a", "b", "q")),
}
NUMBER_KEYS = frozenset({"min", "max", "mu", "sigma", "a", "b", "q"})
