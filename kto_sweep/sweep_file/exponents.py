"""Finds distributions over e^x whose numbers are values of the parameter, not exponents.

log_uniform, log_normal and their kin raise e to what they draw, so {min: 0.01, max: 0.5} gives 1.01 to 1.65.
The numbers of a distribution are a mistake if as values they fit the parameter and as exponents they do not.
"""

import math

from kto_sweep.errors import Problem
from kto_sweep.parameter_types import ParameterDefinition
from kto_sweep.search.distributions import Continuous, Distribution, Normal, Uniform
from kto_sweep.sweep_file.yaml_source import Path
from kto_sweep.text import is_number, show

_USUAL = {
    "rho": 1.0,
    "desirable_weight": 1.0,
    "undesirable_weight": 1.0,
    "weight_decay": 0.01,
    "lora_alpha": 32.0,
    "lora_dropout": 0.05,
    "max_steps": 500.0,
    "eval_steps": 50.0,
}
"""A usual value of each parameter whose default is null or 0."""
_FAR = 100.0
"""No search starts this many times above the usual value."""
_TOO_LARGE = 1e9
"""No parameter's value is this large."""


def exponent_problem(
    distribution: Distribution, definition: ParameterDefinition, place: Path
) -> Problem | None:
    """The problem of a distribution over e^x that was given values; None for any other one."""
    if not isinstance(distribution, Continuous) or not _raises_e(distribution):
        return None
    name, base = distribution.name, distribution.base
    usual = _usual_value(definition)
    if isinstance(base, Normal) and _is_median(base.mu, usual):
        what = f"mu {show(base.mu)} of {name} is an exponent: the median is {_rounded(math.exp(base.mu))}"
        hint = f"mu: {math.log(base.mu):.4g}, for a median of {show(base.mu)}"
    elif isinstance(base, Uniform) and _are_values(*_written_ends(distribution, base), base, usual):
        low, high = _written_ends(distribution, base)
        ends = f"{_rounded(math.exp(base.low))} to {_rounded(math.exp(base.high))}"
        what = f"min {show(low)} and max {show(high)} of {name} are exponents: they give {ends}"
        hint = f"distribution: {name}_values{'' if low else ', with min above 0'}"
    else:
        return None
    return Problem(place, what, f"{name} draws x and uses e^x.", hint)


def _raises_e(distribution: Continuous) -> bool:
    return distribution.log and not distribution.name.endswith("_values")


def _usual_value(definition: ParameterDefinition) -> float | None:
    if is_number(definition.default) and definition.default > 0:
        return float(definition.default)
    return _USUAL.get(definition.name)


def _written_ends(distribution: Continuous, base: Uniform) -> tuple[float, float]:
    """Min and max as in the file: those of inv_log_uniform are the ends of -x."""
    return (-base.high, -base.low) if distribution.name.startswith("inv") else (base.low, base.high)


def _are_values(low: float, high: float, base: Uniform, usual: float | None) -> bool:
    """Whether the written ends of a uniform distribution of x are values."""
    if low < 0:
        return False
    if base.high > math.log(_TOO_LARGE):
        return True
    least, most = math.exp(base.low), math.exp(base.high)
    if usual is not None and (least > _FAR * usual or (low <= usual <= high and not least <= usual <= most)):
        return True
    # A log scale is for wide ranges, and these ends are wide as values only: 0.01 to 0.5.
    return most / least < math.e and (low == 0 or high / low > most / least)


def _is_median(mu: float, usual: float | None) -> bool:
    """Whether the written mu of a normal distribution of x is the median of e^x."""
    if mu <= 0 or usual is None:
        return False
    return mu < 1 if usual < 1 else mu > math.log(_FAR * usual)


def _rounded(value: float) -> str:
    return f"{value:.3g}"
