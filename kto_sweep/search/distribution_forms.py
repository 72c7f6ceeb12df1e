"""The 18 distributions of W&B: which keys each takes in a sweep file, W&B's defaults, and what they make."""

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
class Form:
    """What one distribution takes."""

    build: Callable[[dict[str, Any]], Distribution]
    """Makes the distribution of complete, converted keys. Raises OverflowError when a value is too large."""
    required: tuple[str, ...] = ()
    defaults: Mapping[str, Number] = field(default_factory=dict)
    positive: tuple[str, ...] = ()
    """Keys whose number must be above 0."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that it takes."""
        return (*self.required, *self.defaults)


def _continuous(
    name: str, base: Callable[[dict[str, Any]], Uniform | Normal | Beta], *, log: bool = False
) -> Callable[[dict[str, Any]], Distribution]:
    """A builder for a family without ends."""
    return lambda keys: Continuous(name, base(keys), log=log, q=keys.get("q"))


def _bounded(
    name: str,
    base: Callable[[dict[str, Any]], Uniform],
    ends: Callable[[dict[str, Any]], tuple[Number, Number]] = lambda keys: (keys["min"], keys["max"]),
    *,
    log: bool = False,
) -> Callable[[dict[str, Any]], Distribution]:
    """A builder for a family between two ends."""
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

FORMS: Mapping[str, Form] = {
    "constant": Form(lambda keys: Categorical((keys["value"],)), ("value",)),
    "categorical": Form(lambda keys: Categorical(tuple(keys["values"])), ("values",)),
    "categorical_w_probabilities": Form(
        lambda keys: Categorical(tuple(keys["values"]), tuple(keys["probabilities"])),
        ("values", "probabilities"),
    ),
    "int_uniform": Form(lambda keys: IntUniform(keys["min"], keys["max"]), _ENDS),
    "uniform": Form(_bounded("uniform", _plain), _ENDS),
    "q_uniform": Form(_bounded("q_uniform", _plain), _ENDS, _Q, ("q",)),
    "log_uniform": Form(_bounded("log_uniform", _plain, _powers, log=True), _ENDS),
    "log_uniform_values": Form(_bounded("log_uniform_values", _logs, log=True), _ENDS, {}, _ENDS),
    "inv_log_uniform": Form(_bounded("inv_log_uniform", _mirrored, _inverse_powers, log=True), _ENDS),
    "inv_log_uniform_values": Form(_bounded("inv_log_uniform_values", _logs, log=True), _ENDS, {}, _ENDS),
    "q_log_uniform": Form(_bounded("q_log_uniform", _plain, _powers, log=True), _ENDS, _Q, ("q",)),
    "q_log_uniform_values": Form(_bounded("q_log_uniform_values", _logs, log=True), _ENDS, _Q, (*_ENDS, "q")),
    "normal": Form(_continuous("normal", _normal), (), _MU, _SPREAD),
    "q_normal": Form(_continuous("q_normal", _normal), (), _MU | _Q, _SPREAD),
    "log_normal": Form(_continuous("log_normal", _normal, log=True), (), _MU, _SPREAD),
    "q_log_normal": Form(_continuous("q_log_normal", _normal, log=True), (), _MU | _Q, _SPREAD),
    "beta": Form(_continuous("beta", _beta), (), _AB, ("a", "b")),
    "q_beta": Form(_continuous("q_beta", _beta), (), _AB | _Q, ("a", "b", "q")),
}
NUMBER_KEYS = frozenset({"min", "max", "mu", "sigma", "a", "b", "q"})
