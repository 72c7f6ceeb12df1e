"""The `kto_sweep` key of a registered sweep: options of the embedded server's search that W&B has no key for.

Any client may register anything, so each invalid option is reported and ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from kto_sweep.search.asha import AshaRule, parse_asha
from kto_sweep.search.objectives import OBJECTIVE_COUNTS, Objective, metric_of
from kto_sweep.search.replicates import FIRST_SEED
from kto_sweep.search.space import SEED
from kto_sweep.text import number_from_text

BLOCK = "kto_sweep"
MAX_REPLICATES = 100
SEARCH_KEYS = ("replicates", "asha", "objectives")
"""Keys of the block that the embedded server reads."""
_CREATE_KEYS = ("alerts", "warm_start")
"""Keys that `kto-sweep create` translates to W&B keys; other clients send them unchanged."""


@dataclass(frozen=True)
class Options:
    """The search options of one sweep."""

    seeds: tuple[int, ...] = ()
    """Seeds with which each configuration is trained; empty: each is trained once."""
    asha: AshaRule | None = None
    """The rule by which runs pause and resume; None: they do not."""
    objectives: tuple[Objective, ...] = ()
    """Two or three, the sweep's metric first; empty: the metric is the only one."""


def read_options(config: Mapping[str, Any], problems: list[str]) -> Options:
    """The options of a sweep's configuration; appends a message for each invalid one to `problems`."""
    block = config.get(BLOCK)
    if block is None:
        return Options()
    if not isinstance(block, Mapping):
        problems.append(f"{BLOCK}: {block!r} is not a group of options; ignored")
        return Options()
    for key in block:
        if key in _CREATE_KEYS:
            problems.append(f"{BLOCK}.{key}: only `kto-sweep create` supports it; ignored")
        elif key not in SEARCH_KEYS:
            problems.append(f"{BLOCK}.{key}: unknown option; ignored")
    objectives = _objectives(config, block.get("objectives"), problems)
    if objectives:
        config = {**config, "metric": metric_of(config, objectives)}
    seeds = _seeds(config, block.get("replicates"), problems)
    return Options(seeds, _asha(config, block, problems), objectives)


def _objectives(config: Mapping[str, Any], section: object, problems: list[str]) -> tuple[Objective, ...]:
    here, metric = f"{BLOCK}.objectives", config.get("metric")
    if section is None:
        return ()
    entries = section if isinstance(section, list) else []
    if len(entries) not in OBJECTIVE_COUNTS or not all(map(_is_objective, entries)):
        problems.append(f"{here}: must be two or three of {{name: ..., goal: minimize}}; ignored")
        return ()
    objectives = tuple(Objective(entry["name"], entry.get("goal") == "maximize") for entry in entries)
    if len({objective.name for objective in objectives}) < len(objectives):
        problems.append(f"{here}: the same metric is listed twice; ignored")
        return ()
    metric_goal = (
        (metric.get("name"), metric.get("goal") or "minimize") if isinstance(metric, Mapping) else None
    )
    if metric is not None and metric_goal != (objectives[0].name, objectives[0].goal):
        problems.append(f"{here}: the first one must be the sweep's metric with its goal; ignored")
        return ()
    return objectives


def _is_objective(entry: object) -> bool:
    return (
        isinstance(entry, Mapping)
        and isinstance(entry.get("name"), str)
        and entry.get("goal", "minimize") in ("minimize", "maximize")
    )


def _asha(config: Mapping[str, Any], block: Mapping[str, Any], problems: list[str]) -> AshaRule | None:
    here, section = f"{BLOCK}.asha", block.get("asha")
    if section is None:
        return None
    metric = config.get("metric")
    if not isinstance(section, Mapping):
        problems.append(f"{here}: needs min_iter, or max_iter and s; ignored")
    elif config.get("early_terminate") or block.get("replicates"):
        problems.append(f"{here}: cannot be combined with early_terminate or replicates; ignored")
    elif not isinstance(metric, Mapping) or not isinstance(metric.get("name"), str):
        problems.append(f"{here}: needs a metric with a name; ignored")
    else:
        try:
            return parse_asha(section, here)
        except ValueError as problem:
            problems.append(f"{problem}; ignored")
    return None


def _seeds(config: Mapping[str, Any], count: object, problems: list[str]) -> tuple[int, ...]:
    here = f"{BLOCK}.replicates"
    if count is None:
        return ()
    if not is_replicates(count):
        problems.append(f"{here}: {count!r} is not a number from 2 to {MAX_REPLICATES}; ignored")
    elif config.get("method") not in ("random", "bayes"):
        problems.append(f"{here}: for a grid, only `kto-sweep create` supports it; ignored")
    elif (first := first_seed(config.get("parameters"))) is None:
        problems.append(f"{here}: seed must be a single number, seed: {{value: {FIRST_SEED}}}; ignored")
    else:
        return tuple(range(first, first + count))
    return ()


def is_replicates(count: object) -> TypeGuard[int]:
    """Whether `count` is a valid number of seeds."""
    return isinstance(count, int) and not isinstance(count, bool) and 2 <= count <= MAX_REPLICATES


def first_seed(parameters: object) -> int | None:
    """The seed of the first replicate; None when the sweep searches `seed`."""
    entry = parameters.get(SEED) if isinstance(parameters, Mapping) else None
    if entry is None:
        return FIRST_SEED
    value = entry.get("value") if isinstance(entry, Mapping) else None
    seed = number_from_text(value) if isinstance(value, str) else value
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None
