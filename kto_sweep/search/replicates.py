"""Replicates: each configuration that a search chooses is trained with several seeds before the next one.

Nothing is kept for it but the runs themselves: what they were told to train says what is still to be done.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kto_sweep.search.bayes import Observation
from kto_sweep.search.distributions import value_key

SEED = "seed"
"""The parameter in which replicates differ, at the top of a configuration."""
FIRST_SEED = 42
"""What a trial takes when its sweep says nothing of seeds."""


def next_replicate(chosen: Iterable[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any] | None:
    """The first of the chosen configurations that lacks a seed, with that seed; None when all have theirs.

    `chosen` are those of all runs of the search, oldest first, whatever became of them. One that was chosen
    twice is due each seed twice.
    """
    groups: dict[object, list[Mapping[str, Any]]] = {}
    for config in chosen:
        groups.setdefault(_key(config), []).append(config)
    for configs in groups.values():
        counts = {seed: sum(config.get(SEED) == seed for config in configs) for seed in seeds}
        most = max(counts.values())
        missing = next((seed for seed in seeds if counts[seed] < most), None)
        if missing is not None:
            return {**configs[0], SEED: missing}
    return None


def pooled(observations: Iterable[Observation]) -> list[Observation]:
    """One observation for each configuration, seeds aside, in order of their first ones.

    Its value is the mean of those known; it is pending while none is known and one is yet to come.
    """
    groups: dict[object, list[Observation]] = {}
    for each in observations:
        groups.setdefault(_key(each.config), []).append(each)
    return [_pool(group) for group in groups.values()]


def _pool(group: Sequence[Observation]) -> Observation:
    known = [(each.value, *each.costs) for each in group if each.value is not None]
    if not known:
        return Observation(group[0].config, None, any(each.pending for each in group))
    value, *costs = map(statistics.fmean, zip(*known, strict=True))
    return Observation(group[0].config, value, costs=tuple(costs))


def _key(config: Mapping[str, Any]) -> object:
    return value_key({name: value for name, value in config.items() if name != SEED})
