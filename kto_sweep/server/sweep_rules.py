"""What a sweep's YAML asks of the server: method, space, metric, cap, early termination.

Whatever W&B's own client sends is registered: what is wrong comes back as warnings, as W&B does it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import yaml

from kto_sweep.search import grid
from kto_sweep.search.hyperband import HyperbandRule, parse_hyperband
from kto_sweep.search.objectives import metric_of
from kto_sweep.search.options import Options, read_options
from kto_sweep.search.space import Space
from kto_sweep.search.space_parser import parse_space
from kto_sweep.text import is_number

LONGEST_CONFIG = 1_000_000
"""Characters of a sweep's YAML at most."""
MOST_NODES = 100_000
"""Values in a sweep's YAML at most, aliases counted as often as they are used."""


class SweepConfigError(ValueError):
    """A sweep configuration that cannot be registered; the text says why."""


class Impute(StrEnum):
    """What a Bayesian search takes for the value of a run that has not ended well, in W&B's words."""

    WORST = "worst"
    """The worst value that any run of the sweep has logged."""
    BEST = "best"
    """The best value of the run itself."""
    LATEST = "latest"
    """The last value of the run itself."""


@dataclass(frozen=True)
class Metric:
    """The metric that a sweep ranks its runs by."""

    name: str
    maximize: bool = False
    target: float | None = None
    """The sweep is done when a run gets here."""
    impute: Impute = Impute.WORST
    """The value of failed, crashed and killed runs."""
    impute_while_running: Impute | None = None
    """The value of runs that still run; None: they count as under way, with a value yet to come."""

    def reached(self, value: float) -> bool:
        """Whether `value` is the target or better."""
        if self.target is None or math.isnan(value):
            return False
        return value >= self.target if self.maximize else value <= self.target


@dataclass(frozen=True)
class SweepRules:
    """One sweep's configuration as the server acts on it."""

    method: str
    space: Space | None
    """None when a client-side scheduler chooses the trials, or the parameters cannot be read."""
    metric: Metric | None
    run_cap: int | None
    early_termination: HyperbandRule | None
    program: str
    name: str | None
    queue_only: bool
    """A client-side scheduler enqueues the runs; the server only hands them out."""
    options: Options
    """What the sweep asks for in the `kto_sweep` key."""
    problems: tuple[str, ...]
    """What is wrong with the configuration, for the client to print."""

    def expected_trials(self) -> int | None:
        """How many runs the sweep will have in all; None when it has no end of its own."""
        size = self.space.grid_size() if self.space is not None and self.method == "grid" else None
        return min((bound for bound in (size, self.run_cap) if bound is not None), default=None)


@lru_cache(maxsize=256)
def read_rules(text: str) -> SweepRules:
    """The rules in a sweep's YAML text. Raises SweepConfigError when it is no mapping or far too large."""
    if len(text) > LONGEST_CONFIG:
        raise SweepConfigError(f"the sweep configuration has more than {LONGEST_CONFIG} characters")
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        raise SweepConfigError(f"the sweep configuration is not YAML: {problem}") from problem
    if not isinstance(config, Mapping):
        raise SweepConfigError("the sweep configuration is not a mapping with method and parameters")
    _check_size(config)
    return _rules(config)


def _check_size(config: object) -> None:
    """Raises SweepConfigError for too many values; aliases make few characters mean a great many."""
    waiting, count = [config], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST_NODES:
            raise SweepConfigError(f"the sweep configuration holds more than {MOST_NODES} values")
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _rules(config: Mapping[str, Any]) -> SweepRules:
    problems: list[str] = []
    method = str(config.get("method"))
    if method not in ("grid", "random", "bayes", "custom"):
        problems.append(f"method: {method!r} is none of grid, random, bayes")
    queue_only = bool(config.get("scheduler"))
    space = None if queue_only else _space(config, method, problems)
    options = read_options(config, problems)
    metric = _metric(metric_of(config, options.objectives), problems)
    if method == "bayes" and metric is None:
        problems.append("metric: method bayes needs a metric with a name; trials are drawn at random")
    name = config.get("name")
    return SweepRules(
        method=method,
        space=space,
        metric=metric,
        run_cap=_run_cap(config.get("run_cap"), problems),
        early_termination=_early_termination(config.get("early_terminate"), metric, problems),
        program=str(config.get("program") or ""),
        name=name if isinstance(name, str) else None,
        queue_only=queue_only,
        options=options,
        problems=tuple(problems),
    )


def _space(config: Mapping[str, Any], method: str, problems: list[str]) -> Space | None:
    parameters = config.get("parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        problems.append("parameters: none are given")
        return None
    space, refused = parse_space(parameters)
    problems += [problem.one_line for problem in refused]
    if space is not None and method == "grid" and not grid.can_list(space):
        endless = [p.name for p in space.parameters if p.distribution.cell_count() is None]
        problems.append(
            f"parameters: a grid cannot list {', '.join(endless) or 'so many values'}; use values: [...]"
        )
        return None
    return space


def _metric(section: object, problems: list[str]) -> Metric | None:
    if section is None:
        return None
    if not isinstance(section, Mapping) or not isinstance(section.get("name"), str):
        problems.append("metric: needs a name")
        return None
    goal, target = section.get("goal", "minimize"), section.get("target")
    if goal not in ("minimize", "maximize"):
        problems.append(f"metric.goal: {goal!r} is neither minimize nor maximize; taken as minimize")
    if target is not None and not is_number(target):
        problems.append(f"metric.target: {target!r} is not a number; ignored")
        target = None
    return Metric(
        section["name"],
        goal == "maximize",
        None if target is None else float(target),
        _impute(section, "impute", problems) or Impute.WORST,
        _impute(section, "impute_while_running", problems),
    )


def _impute(section: Mapping[str, Any], key: str, problems: list[str]) -> Impute | None:
    value = section.get(key)
    # "false" and nothing both mean W&B's default; YAML reads an unquoted false as a truth value.
    if value is None or value is False or value == "false":
        return None
    try:
        return Impute(value)
    except ValueError:
        problems.append(f"metric.{key}: {value!r} is none of worst, best, latest; ignored")
        return None


def _run_cap(value: object, problems: list[str]) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        problems.append(f"run_cap: {value!r} is not a whole number above 0; ignored")
        return None
    return value


def _early_termination(section: object, metric: Metric | None, problems: list[str]) -> HyperbandRule | None:
    if not section:
        return None
    if not isinstance(section, Mapping):
        problems.append("early_terminate: needs type and min_iter, or max_iter and s")
        return None
    if metric is None:
        problems.append("early_terminate: needs a metric with a name")
        return None
    try:
        return parse_hyperband(section)
    except ValueError as problem:
        problems.append(str(problem))
        return None
