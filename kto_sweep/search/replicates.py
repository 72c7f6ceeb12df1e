"""Replicates: each configuration that a search chooses is trained with several seeds before the next one.

The runs are the only state: their configurations show which seeds are missing.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kto_sweep.search import grid
from kto_sweep.search.bayes import Observation
from kto_sweep.search.distributions import value_key
from kto_sweep.search.space import SEED, Space

FIRST_SEED = 42
"""A trial's default seed."""


def next_replicate(chosen: Iterable[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any] | None:
    """The first chosen configuration with a missing seed, with that seed; None if there is none.

    `chosen` has the configurations of all runs of the search, oldest first, including failed ones. A
    configuration that was chosen twice needs each seed twice.
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


def pooled(observations: Iterable[Observation], space: Space) -> list[Observation]:
    """One observation per configuration, ignoring the seed, in order of first appearance.

    Only searched parameters count: the configurations of prior runs have others too. The value is the mean of
    the runs' values; the observation is pending while it has no value and a run is pending.
    """
    searched = Space(tuple(parameter for parameter in space.searched if parameter.path != (SEED,)))
    groups: dict[object, list[Observation]] = {}
    for observation in observations:
        groups.setdefault(grid.cell_key(searched, observation.config), []).append(observation)
    return [_pool(group) for group in groups.values()]


def _pool(group: Sequence[Observation]) -> Observation:
    losses = [(run.value, *run.costs) for run in group if run.value is not None]
    if not losses:
        return Observation(group[0].config, None, any(run.pending for run in group))
    value, *costs = map(statistics.fmean, zip(*losses, strict=True))
    return Observation(group[0].config, value, costs=tuple(costs))


def _key(config: Mapping[str, Any]) -> object:
    return value_key({name: value for name, value in config.items() if name != SEED})
