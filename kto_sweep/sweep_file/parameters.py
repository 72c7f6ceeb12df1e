"""Checks of a sweep file's `parameters`: W&B's rules for the method, and the rules of a trial."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kto_sweep.errors import Problem
from kto_sweep.parameter_types import ParameterDefinition, Real, WholeNumber
from kto_sweep.search.distributions import Categorical, Continuous, Distribution, Value
from kto_sweep.search.space import Space
from kto_sweep.search.space_parser import is_name, parse_parameters
from kto_sweep.sweep_file.exponents import exponent_problem
from kto_sweep.sweep_file.yaml_source import Path
from kto_sweep.text import listed, show
from kto_sweep.trial import (
    PARAMETERS,
    check_value,
    combination_problems,
    is_setting,
    leaves,
    parameter_name,
    unknown_parameter,
)

MAX_LISTED_CELLS = 100_000
"""Of a parameter with more cells the ends of its range are checked, and not its first and last cell."""


@dataclass(frozen=True)
class ParameterEntry:
    """One parameter as written in the file."""

    path: Path
    """Its nested name."""
    place: Path
    """Its keys from the top of the file."""
    body: Any

    def at(self, *keys: str) -> Path:
        """The place of the first of `keys` that the entry has, else the entry's."""
        body = self.body if isinstance(self.body, Mapping) else {}
        return next(((*self.place, key) for key in keys if key in body), self.place)


@dataclass(frozen=True)
class GivenValue:
    """A value that the file gives to a parameter: a listed one, or an end of a range."""

    path: Path
    """The parameter's nested name."""
    place: Path
    """Keys of the value from the top of the file."""
    value: Value


@dataclass(frozen=True)
class CheckedParameters:
    """A `parameters` section as a space, and its problems."""

    space: Space | None = None
    """None if W&B would reject the section."""
    values: Mapping[str, Sequence[GivenValue]] = field(default_factory=dict)
    """For each parameter that the file sets, its listed values or the ends of its range."""
    problems: Sequence[Problem] = ()


def check_parameters(section: Any, method: Any) -> CheckedParameters:
    """The section checked against W&B's rules for `method` and the rules of a trial."""
    if not isinstance(section, Mapping) or not section:
        what = "no parameters" if not section else f"{show(section)} is not a group of parameters"
        hint = "parameters: {learning_rate: {values: [1.0e-6, 5.0e-6]}, ...}"
        return CheckedParameters(problems=[Problem(("parameters",), what, hint=hint)])
    parameters, section_problems = parse_parameters(section)
    distributions = {parameter.path: parameter.distribution for parameter in parameters}
    problems = list(section_problems)
    values: dict[str, list[GivenValue]] = {}
    places: dict[str, dict[Path, Path]] = {}
    misspelt: set[str] = set()
    for entry in entries(section):
        for path, given in _given_values(entry, distributions.get(entry.path), method).items():
            name = parameter_name(path)
            if (group := _ignored_group(path)) is not None:
                why = "Trials ignore it: the name is not for a sweep's parameters."
                problems.append(Problem(entry.place, f"a group named {group}", why, "rename the group"))
                continue
            if name is None:
                problem = unknown_parameter(path)
                problems.append(replace(problem, path=entry.place))
                misspelt.add(problem.hint)
                continue
            values.setdefault(name, []).extend(given)
            places.setdefault(name, {})[path] = entry.place
            value_problems = list(
                _check_distribution(entry, distributions.get(path), PARAMETERS[name], method)
            )
            if not value_problems:
                value_problems = list(filter(None, (_check_value(name, value) for value in given)))
            problems += value_problems
    problems += _check_twice(places)
    problems += _check_combinations(values, places, misspelt)
    space = None if section_problems else Space(tuple(parameters))
    return CheckedParameters(space, values, problems)


def entries(
    section: Mapping[Any, Any], path: Path = (), place: Path = ("parameters",)
) -> Iterator[ParameterEntry]:
    """Every parameter of a section and of its groups that has a valid name."""
    for name, body in section.items():
        here, there = (*path, str(name)), (*place, str(name))
        if isinstance(body, Mapping) and isinstance(body.get("parameters"), Mapping):
            yield from entries(body["parameters"], here, (*there, "parameters"))
        elif is_name(name):
            yield ParameterEntry(here, there, body)


def _ignored_group(path: Path) -> str | None:
    """The first group of a nested name that Trial.from_config leaves out."""
    groups = enumerate(path[:-1])
    return next((name for i, name in groups if name.startswith("_") or not (i or is_setting(name))), None)


def _given_values(
    entry: ParameterEntry, distribution: Distribution | None, method: Any
) -> dict[Path, list[GivenValue]]:
    """An entry's values by parameter: several parameters where its values are groups ({r: 8, alpha: 16})."""
    if distribution is None:
        return {entry.path: []}
    listed_values = list(_values(entry, distribution, method))
    if not all(isinstance(value, Mapping) for value, _ in listed_values):
        return {entry.path: [GivenValue(entry.path, place, value) for value, place in listed_values]}
    given: dict[Path, list[GivenValue]] = {}
    for group, place in listed_values:
        for path, value in leaves(group, entry.path):
            given.setdefault(path, []).append(GivenValue(path, place, value))
    return given


def _values(entry: ParameterEntry, distribution: Distribution, method: Any) -> Iterator[tuple[Value, Path]]:
    if isinstance(distribution, Categorical):
        for i, value in enumerate(distribution.values):
            yield value, entry.at("value") if "value" in entry.body else (*entry.place, "values", str(i))
        return
    low, high = distribution.extremes()
    if isinstance(distribution, Continuous) and distribution.bounds is None:
        low, high = (float(f"{end:.3g}") for end in (low, high))  # the file does not have more digits
    count = distribution.cell_count() if method == "grid" else None
    if count is not None and count <= MAX_LISTED_CELLS:  # a grid starts at min and excludes max
        cells = distribution.cells() or ()
        low, high = cells[0], cells[-1]
    yield low, entry.at("min", "distribution")
    yield high, entry.at("max", "distribution")


def _check_value(name: str, given: GivenValue) -> Problem | None:
    problem = check_value(name, given.value)[1]
    return None if problem is None else replace(problem, path=given.place)


def _check_distribution(
    entry: ParameterEntry, distribution: Distribution | None, definition: ParameterDefinition, method: Any
) -> Iterator[Problem]:
    """The problem of a distribution with this parameter and method; at most one."""
    if distribution is None:
        return
    at = entry.at("probabilities", "distribution", "min")
    exponents = exponent_problem(distribution, definition, at)
    if exponents is not None:
        yield exponents
        return
    name, why = distribution.name, f"{definition.doc}: {definition.type.description}."
    if isinstance(distribution, Categorical):
        if distribution.probabilities is not None and method in ("grid", "bayes"):
            search = (
                "A grid visits every value once."
                if method == "grid"
                else "W&B's bayes does not support them."
            )
            yield Problem(at, f"probabilities with method {method}", search, "remove them, or method: random")
    elif not isinstance(definition.type, WholeNumber | Real):
        yield Problem(at, f"{name} gives numbers", why, "values: [...]")
    elif isinstance(distribution, Continuous):
        if isinstance(definition.type, WholeNumber) and not _is_whole(distribution.q):
            yield Problem(at, f"{name} gives fractions", why, _whole_hint(distribution))
        elif method == "grid" and distribution.cell_count() is None:
            sample = [_sample(distribution, u, definition) for u in (0.0, 0.5, 1.0)]
            why = f"method grid tries every value, and {name} has infinitely many."
            hint = f"values: {listed(sample)}, or method: random"
            yield Problem(at, f"a grid cannot use {name}", why, hint)


def _is_whole(q: float | None) -> bool:
    return q is not None and q == int(q)


def _whole_hint(distribution: Continuous) -> str:
    if distribution.name == "uniform" and distribution.bounds is not None:
        low, high = (int(end) for end in distribution.bounds)
        return f"min: {low} and max: {high} without distribution"
    if distribution.q is not None:
        return "q: 1"
    return f"distribution: q_{distribution.name.removeprefix('inv_')} and q: 1"


def _sample(distribution: Continuous, u: float, definition: ParameterDefinition) -> Value:
    """A value for a hint: rounded to two digits, or to a whole number where the parameter needs one."""
    value = distribution.ppf(min(max(u, 0.001), 0.999) if distribution.bounds is None else u)
    return round(value) if isinstance(definition.type, WholeNumber) else float(f"{value:.2g}")


def _check_twice(places: Mapping[str, Mapping[Path, Path]]) -> Iterator[Problem]:
    for name, by_path in places.items():
        for path in list(by_path)[1:]:
            first = ".".join(next(iter(by_path)))
            yield Problem(
                by_path[path], f"{name} is set twice", f"{first} sets it too.", "keep one of the two"
            )


def _check_combinations(
    values: Mapping[str, Sequence[GivenValue]],
    places: Mapping[str, Mapping[Path, Path]],
    misspelt: set[str],
) -> Iterator[Problem]:
    """Problems of parameters in combination; a misspelt parameter, already reported, is not missing."""
    possible: dict[str, list[object]] = {name: ["unknown"] for name in misspelt}
    for name, given in values.items():
        possible[name] = [check_value(name, value.value)[0] for value in given] or ["unknown"]
    for problem in combination_problems(possible):
        place = next(iter(places.get(problem.where, {}).values()), ("parameters",))
        yield replace(problem, path=place)
