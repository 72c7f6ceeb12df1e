"""Parses a sweep's YAML: method, space, metric, cap, early termination.

A configuration that gives no trial is refused, as on W&B (see sweep_refusals.py); the rest is a warning.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import yaml

from kto_sweep.search.hyperband import HyperbandRule, parse_hyperband
from kto_sweep.search.objectives import metric_of
from kto_sweep.search.options import Options, read_options
from kto_sweep.search.space import Space
from kto_sweep.search.space_parser import parse_space
from kto_sweep.server.sweep_refusals import refusal_of_early_termination, refusal_of_space
from kto_sweep.text import is_number

MAX_CONFIG = 1_000_000
"""Maximum characters of a sweep's YAML."""
MAX_NODES = 100_000
"""Maximum values in a sweep's YAML, with aliases expanded."""


class SweepConfigError(ValueError):
    """The sweep configuration cannot be registered; the message says why."""


class Impute(StrEnum):
    """Value that Bayesian search uses for a run that did not finish (W&B's `metric.impute`)."""

    WORST = "worst"
    """The worst value of any run in the sweep."""
    BEST = "best"
    """The run's own best value."""
    LATEST = "latest"
    """The run's own last value."""


@dataclass(frozen=True)
class SweepMetric:
    """The metric that a sweep ranks its runs by."""

    name: str
    maximize: bool = False
    target: float | None = None
    """The sweep finishes when a run reaches this value."""
    impute: Impute = Impute.WORST
    """Value of failed, crashed and killed runs."""
    impute_while_running: Impute | None = None
    """Value of running runs; None: they are pending observations."""

    def reached(self, value: float) -> bool:
        """Whether `value` is the target or better."""
        if self.target is None or math.isnan(value):
            return False
        return value >= self.target if self.maximize else value <= self.target


@dataclass(frozen=True)
class SweepRules:
    """A sweep's parsed configuration."""

    method: str
    space: Space | None
    """None when a client-side scheduler chooses the trials, or the parameters are invalid."""
    metric: SweepMetric | None
    run_cap: int | None
    early_termination: HyperbandRule | None
    program: str
    name: str | None
    queue_only: bool
    """A client-side scheduler enqueues the runs; the server only assigns them."""
    options: Options
    """Options in the `kto_sweep` key."""
    problems: tuple[str, ...]
    """Problems that the search can live with, for the client to print."""
    refusal: str | None
    """Why the server does not register this configuration; None if it does."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the sweep is judged by: its own, and further objectives."""
        names = [objective.name for objective in self.options.objectives]
        return (*([self.metric.name] if self.metric else []), *names)

    def expected_trials(self) -> int | None:
        """Total number of runs; None for a sweep without an end."""
        size = self.space.grid_size() if self.space is not None and self.method == "grid" else None
        return min((bound for bound in (size, self.run_cap) if bound is not None), default=None)


@lru_cache(maxsize=256)
def read_rules(text: str) -> SweepRules:
    """Parses a sweep's YAML. Raises SweepConfigError when it is not a mapping or is too large."""
    if len(text) > MAX_CONFIG:
        raise SweepConfigError(f"the sweep configuration has more than {MAX_CONFIG} characters")
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        raise SweepConfigError(f"the sweep configuration is not YAML: {problem}") from problem
    if not isinstance(config, Mapping):
        raise SweepConfigError("the sweep configuration is not a mapping with method and parameters")
    _check_size(config)
    return _rules(config)


def _check_size(config: object) -> None:
    """Raises SweepConfigError for too many values; a few characters of aliases can expand to many values."""
    waiting, count = [config], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MAX_NODES:
            raise SweepConfigError(f"the sweep configuration holds more than {MAX_NODES} values")
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _rules(config: Mapping[str, Any]) -> SweepRules:
    problems: list[str] = []
    queue_only = bool(config.get("scheduler"))
    space, refusal = (None, None) if queue_only else _space(config)
    options = read_options(config, problems)
    metric = _metric(metric_of(config, options.objectives), problems)
    method, early_terminate = str(config.get("method")), config.get("early_terminate")
    if refusal is None and method == "bayes" and metric is None and not queue_only:
        refusal = 'Bayesian search requires "metric" section with a name'
    stop_refusal = refusal_of_early_termination(early_terminate, has_metric=metric is not None)
    name = config.get("name")
    return SweepRules(
        method=method,
        space=space,
        metric=metric,
        run_cap=_run_cap(config.get("run_cap"), problems),
        early_termination=parse_hyperband(early_terminate) if early_terminate and not stop_refusal else None,
        program=str(config.get("program") or ""),
        name=name if isinstance(name, str) else None,
        queue_only=queue_only,
        options=options,
        problems=tuple(problems),
        refusal=refusal or stop_refusal,
    )


def _space(config: Mapping[str, Any]) -> tuple[Space | None, str | None]:
    """The space to search, or why there is none."""
    parameters = config.get("parameters")
    space, problems = parse_space(parameters) if isinstance(parameters, Mapping) else (None, [])
    refusal = refusal_of_space(config, space, problems)
    return (None if refusal else space), refusal


def _metric(section: object, problems: list[str]) -> SweepMetric | None:
    if section is None:
        return None
    if not isinstance(section, Mapping) or not isinstance(section.get("name"), str):
        problems.append("metric: needs a name")
        return None
    goal, target = section.get("goal", "minimize"), section.get("target")
    if goal not in ("minimize", "maximize"):
        problems.append(f"metric.goal: {goal!r} is neither minimize nor maximize; using minimize")
    if target is not None and not is_number(target):
        problems.append(f"metric.target: {target!r} is not a number; ignored")
        target = None
    return SweepMetric(
        section["name"],
        goal == "maximize",
        None if target is None else float(target),
        _impute(section, "impute", problems) or Impute.WORST,
        _impute(section, "impute_while_running", problems),
    )


def _impute(section: Mapping[str, Any], key: str, problems: list[str]) -> Impute | None:
    value = section.get(key)
    # "false" and a missing value both mean W&B's default; YAML parses an unquoted false as a boolean.
    if value is None or value is False or value == "false":
        return None
    try:
        return Impute(value)
    except ValueError:
        problems.append(f"metric.{key}: {value!r} is not one of worst, best, latest; ignored")
        return None


def _run_cap(value: object, problems: list[str]) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        problems.append(f"run_cap: {value!r} is not a whole number above 0; ignored")
        return None
    return value
