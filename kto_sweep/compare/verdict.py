"""The verdict on a sweep as data: the best configuration of each ranking, and how sure that is. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from kto_sweep.compare.confidence import Certainty, SeedNoise, seed_noise, ties
from kto_sweep.compare.ranking import Configuration


@dataclass(frozen=True)
class Verdict:
    """The conclusion from trials that were judged on the same rows."""

    winner: Configuration
    """The configuration with the best mean."""
    others: tuple[Configuration, ...]
    """The other configurations, best first."""
    certainty: Certainty
    tied: tuple[Configuration, ...]
    """Those whose distance to the winner may be seed noise; empty unless it is a tie."""
    lead: float | None
    """Distance from the winner's mean to the next; to the nearest tied one in a tie. None without another."""
    noise: SeedNoise | None

    @property
    def group(self) -> str:
        """The eval_groups group of its trials; empty if all were judged on the same rows."""
        return self.winner.group

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the winner's mean over many seeds is, with 95 % confidence; None if the noise is unknown."""
        if self.noise is None:
            return None
        mean, width = self.winner.mean, self.noise.half_width(len(self.winner.values))
        return mean - width, mean + width


def make_verdicts(configurations: Sequence[Configuration], *, is_own_metric: bool) -> tuple[Verdict, ...]:
    """One verdict for each set of rows that trials were judged on; `configurations` best first.

    The noise of earlier sweeps is that of the sweep's own metric: it counts only if `is_own_metric`.
    """
    groups: dict[str, list[Configuration]] = {}
    for configuration in configurations:
        groups.setdefault(configuration.group, []).append(configuration)
    return tuple(_verdict(members, is_own_metric=is_own_metric) for members in groups.values())


def _verdict(configurations: Sequence[Configuration], *, is_own_metric: bool) -> Verdict:
    best, others = configurations[0], tuple(configurations[1:])
    noise = seed_noise(configurations)
    if noise is not None and noise.from_earlier_sweeps and not is_own_metric:
        noise = None
    lead = abs(others[0].mean - best.mean) if others else None
    if noise is None or not others:
        return Verdict(best, others, Certainty.UNKNOWN, (), lead, noise)
    if tied := ties(configurations, noise):
        return Verdict(best, others, Certainty.TIE, tuple(tied), abs(tied[0].mean - best.mean), noise)
    return Verdict(best, others, Certainty.CLEAR, (), lead, noise)
