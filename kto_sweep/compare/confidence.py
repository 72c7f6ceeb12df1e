"""How sure the lead of the best configuration is, from the spread between seeds. Pure.

The lead over each other configuration is tested with Student's t-test at SIGNIFICANCE. Whichever
configuration leads is called the best, so of several equal ones the luckiest is tested; two equal ones are
the worst case, and there the test errs with twice SIGNIFICANCE (S. Gutmann and Z. Maymin 1987, "Is the
selected population the best?", doi 10.1214/aos/1176350375). benchmarks/verdict_simulation.py measures how
often a clear winner is the best one.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kto_sweep.compare.ranking import Configuration

SIGNIFICANCE = 0.0025
"""A lead counts if seed noise alone produces one as large with less than this probability."""
LEVEL = 0.95
"""Confidence level of intervals."""
POWER_QUANTILE = 0.84
"""Normal quantile of 80 % power."""
DEVIATION, DEGREES = "seed_spread/deviation", "seed_spread/degrees_of_freedom"
"""Summary of a trial: the spread between seeds in earlier sweeps of its model, data and budget on its box."""


class Certainty(StrEnum):
    """How sure it is that the best configuration is the best."""

    CLEAR = "clear"
    """Its lead is larger than seed noise explains."""
    TIE = "tie"
    """Seed noise may explain its lead over at least one other configuration."""
    UNKNOWN = "unknown"
    """Seed noise is unknown, or there is nothing to compare it with."""


@dataclass(frozen=True)
class SeedNoise:
    """How much trials of one configuration differ from seed to seed."""

    deviation: float
    """Standard deviation of one trial's value."""
    degrees_of_freedom: int
    """Trials minus configurations that it was measured on."""
    from_earlier_sweeps: bool = False
    """Measured in earlier sweeps with the same model, data and budget, not in this one."""

    def half_width(self, trials: int) -> float:
        """Half the width of the interval around the mean of so many trials, at LEVEL."""
        return _t_quantile((1 + LEVEL) / 2, self.degrees_of_freedom) * self.deviation / math.sqrt(trials)


def seed_noise(configurations: Iterable[Configuration]) -> SeedNoise | None:
    """The noise pooled over all configurations with several trials; else that of earlier sweeps, if known."""
    configurations = list(configurations)
    return _replicate_noise(configurations) or _earlier_noise(configurations)


def _replicate_noise(configurations: Iterable[Configuration]) -> SeedNoise | None:
    squares, degrees = 0.0, 0
    for configuration in configurations:
        mean, count = configuration.mean, len(configuration.values)
        if count > 1:
            squares += sum((value - mean) ** 2 for value in configuration.values)
            degrees += count - 1
    return SeedNoise(math.sqrt(squares / degrees), degrees) if degrees else None


def _earlier_noise(configurations: Iterable[Configuration]) -> SeedNoise | None:
    """The best-measured spread that the trials' boxes knew when the trials ended."""
    known = [
        (int(degrees), deviation)
        for configuration in configurations
        for trial in configuration.trials
        if (deviation := trial.value(DEVIATION)) is not None
        and (degrees := trial.value(DEGREES)) is not None
        and degrees >= 1
    ]
    if not known:
        return None
    degrees, deviation = max(known)
    return SeedNoise(deviation, degrees, from_earlier_sweeps=True)


def ties(configurations: Sequence[Configuration], noise: SeedNoise) -> list[Configuration]:
    """The configurations whose distance to the first, the best, may be seed noise."""
    best = configurations[0]
    return [other for other in configurations[1:] if _p_value(best, other, noise) >= SIGNIFICANCE]


def _p_value(one: Configuration, other: Configuration, noise: SeedNoise) -> float:
    """Probability of a lead this large from seed noise alone."""
    from scipy.stats import t

    # The noise differs between configurations, most near divergence: that of these two counts if larger.
    own = _replicate_noise((one, other))
    deviation = max(noise.deviation, own.deviation if own else 0.0)
    width = deviation * math.sqrt(1 / len(one.values) + 1 / len(other.values))
    if width == 0:
        return 0.0 if one.mean != other.mean else 1.0
    return float(t.sf(abs(one.mean - other.mean) / width, noise.degrees_of_freedom))


def seeds_to_settle(lead: float, noise: SeedNoise) -> int | None:
    """Trials of each configuration that make a true difference of `lead` clear in 4 of 5 sweeps."""
    if lead <= 0:
        return None
    quantile = _t_quantile(1 - SIGNIFICANCE, None) + POWER_QUANTILE
    return max(2, math.ceil(2 * (quantile * noise.deviation / lead) ** 2))


def _t_quantile(probability: float, degrees_of_freedom: int | None) -> float:
    """Of Student's t distribution; of the normal one without degrees of freedom."""
    from scipy.stats import norm, t

    return float(t.ppf(probability, degrees_of_freedom) if degrees_of_freedom else norm.ppf(probability))
