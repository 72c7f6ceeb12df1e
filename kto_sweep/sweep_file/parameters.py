"""The `parameters` section of a sweep file: against W&B's rules for the method, and those of a trial."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kto_sweep.errors import Problem
from kto_sweep.parameter_types import ParameterRule, Real, WholeNumber
from kto_sweep.search.distributions import Categorical, Continuous, Distribution, Value
from kto_sweep.search.space import Space
from kto_sweep.search.space_parser import is_name, parse_parameters
from kto_sweep.sweep_file.yaml_source import Finding, Path
from kto_sweep.text import listed, show
from kto_sweep.trial import (
    PARAMETERS,
    check_value,
    combination_problems,
    leaves,
    parameter_name,
    unknown_parameter,
)

MOST_TRIALS = 100_000
"""A larger grid is taken for a mistake: W&B lists all of it before the first trial starts."""


@dataclass(frozen=True)
class Entry:
    """One parameter as the file has it."""

    path: Path
    """Its nested name."""
    place: Path
    """Its keys from the top of the file."""
    body: Any

    def at(self, *keys: str) -> Path:
        """The place of the first of the keys that it has, else its own."""
        body = self.body if isinstance(self.body, Mapping) else {}
        return next(((*self.place, key) for key in keys if key in body), self.place)


@dataclass(frozen=True)
class Use:
    """A value that the file gives to a parameter."""

    path: Path
    """The parameter's nested name."""
    place: Path
    """Where the value stands: keys from the top of the file."""
    value: Value


@dataclass(frozen=True)
class CheckedParameters:
    """What a `parameters` section says, and what is wrong with it."""

    space: Space | None = None
    """None when W&B's search could not work with it."""
    uses: Mapping[str, Sequence[Use]] = field(default_factory=dict)
    """For each parameter that the file sets, the values known beforehand: listed ones, ends of ranges."""
    findings: Sequence[Finding] = ()


def check_parameters(section: Any, method: Any) -> CheckedParameters:
    """The section against W&B's rules for `method` and against those of a trial."""
    if not isinstance(section, Mapping) or not section:
        what = "no parameters" if not section else f"{show(section)} is not a group of parameters"
        hint = "parameters: {learning_rate: {values: [1.0e-6, 5.0e-6]}, ...}"
        return CheckedParameters(findings=[Finding(("parameters",), what, hint=hint)])
    parameters, violations = parse_parameters(section)
    distributions = {parameter.path: parameter.distribution for parameter in parameters}
    findings = [Finding(("parameters", *v.path), v.what, v.why, v.hint) for v in violations]
    uses: dict[str, list[Use]] = {}
    places: dict[str, dict[Path, Path]] = {}
    meant: set[str] = set()
    for entry in entries(section):
        for path, known in _uses(entry, distributions.get(entry.path), method).items():
            name = parameter_name(path)
            if name is None:
                problem = unknown_parameter(path)
                findings.append(_finding(problem, entry.place))
                meant.add(problem.hint)
                continue
            uses.setdefault(name, []).extend(known)
            places.setdefault(name, {})[path] = entry.place
            found = list(_check_distribution(entry, distributions.get(path), PARAMETERS[name], method))
            findings += found or [f for use in known if (f := _check_use(name, use))]
    findings += _check_twice(places)
    findings += _check_combinations(uses, places, meant)
    space = None if violations else Space(tuple(parameters))
    return CheckedParameters(space, uses, [*findings, *_check_size(space, method)])


def entries(section: Mapping[Any, Any], path: Path = (), place: Path = ("parameters",)) -> Iterator[Entry]:
    """Every parameter of a section and of its groups, whatever is wrong with it but its name."""
    for name, body in section.items():
        here, there = (*path, str(name)), (*place, str(name))
        if isinstance(body, Mapping) and isinstance(body.get("parameters"), Mapping):
            yield from entries(body["parameters"], here, (*there, "parameters"))
        elif is_name(name):
            yield Entry(here, there, body)


def _uses(entry: Entry, distribution: Distribution | None, method: Any) -> dict[Path, list[Use]]:
    """The known values of an entry by parameter: several where its values are groups ({r: 8, alpha: 16})."""
    if distribution is None:
        return {entry.path: []}
    known = list(_known_values(entry, distribution, method))
    if not all(isinstance(value, Mapping) for value, _ in known):
        return {entry.path: [Use(entry.path, place, value) for value, place in known]}
    uses: dict[Path, list[Use]] = {}
    for group, place in known:
        for path, value in leaves(group, entry.path):
            uses.setdefault(path, []).append(Use(path, place, value))
    return uses


def _known_values(entry: Entry, distribution: Distribution, method: Any) -> Iterator[tuple[Value, Path]]:
    if isinstance(distribution, Categorical):
        for i, value in enumerate(distribution.values):
            yield value, entry.at("value") if "value" in entry.body else (*entry.place, "values", str(i))
        return
    low, high = distribution.extremes()
    if isinstance(distribution, Continuous) and distribution.bounds is None:
        low, high = (float(f"{end:.3g}") for end in (low, high))  # nobody wrote the further digits
    cells = distribution.cell_count() if method == "grid" else None
    if cells is not None and cells <= MOST_TRIALS:  # a grid begins at min and leaves max out
        listed_values = distribution.cells() or ()
        low, high = listed_values[0], listed_values[-1]
    yield low, entry.at("min", "distribution")
    yield high, entry.at("max", "distribution")


def _check_use(name: str, use: Use) -> Finding | None:
    problem = check_value(name, use.value)[1]
    return None if problem is None else _finding(problem, use.place)


def _check_distribution(
    entry: Entry, distribution: Distribution | None, rule: ParameterRule, method: Any
) -> Iterator[Finding]:
    """What is wrong with a distribution as such for this parameter and method; at most one thing."""
    if distribution is None:
        return
    at = entry.at("probabilities", "distribution", "min")
    name, why = distribution.name, f"{rule.doc}: {rule.kind.description}."
    if isinstance(distribution, Categorical):
        if distribution.probabilities is not None and method in ("grid", "bayes"):
            search = "A grid visits every value once." if method == "grid" else "W&B's bayes fails on them."
            yield Finding(at, f"probabilities with method {method}", search, "remove them, or method: random")
    elif not isinstance(rule.kind, WholeNumber | Real):
        yield Finding(at, f"{name} gives numbers", why, "values: [...]")
    elif isinstance(distribution, Continuous):
        if isinstance(rule.kind, WholeNumber) and not _is_whole(distribution.q):
            yield Finding(at, f"{name} gives fractions", why, _whole_hint(distribution))
        elif method == "grid" and distribution.cell_count() is None:
            sample = [_sample(distribution, u, rule) for u in (0.0, 0.5, 1.0)]
            why = f"method grid tries every value, and {name} has no end of them."
            hint = f"values: {listed(sample)}, or method: random"
            yield Finding(at, f"a grid cannot visit {name}", why, hint)


def _is_whole(q: float | None) -> bool:
    return q is not None and q == int(q)


def _whole_hint(distribution: Continuous) -> str:
    if distribution.name == "uniform" and distribution.bounds is not None:
        low, high = (int(end) for end in distribution.bounds)
        return f"min: {low} and max: {high} without distribution"
    if distribution.q is not None:
        return "q: 1"
    return f"distribution: q_{distribution.name.removeprefix('inv_')} and q: 1"


def _sample(distribution: Continuous, u: float, rule: ParameterRule) -> Value:
    """A value to propose: two digits, and one that the parameter can take."""
    value = distribution.ppf(min(max(u, 0.001), 0.999) if distribution.bounds is None else u)
    return round(value) if isinstance(rule.kind, WholeNumber) else float(f"{value:.2g}")


def _check_twice(places: Mapping[str, Mapping[Path, Path]]) -> Iterator[Finding]:
    for name, by_path in places.items():
        for path in list(by_path)[1:]:
            first = ".".join(next(iter(by_path)))
            yield Finding(
                by_path[path], f"{name} is given twice", f"{first} sets it too.", "keep one of the two"
            )


def _check_combinations(
    uses: Mapping[str, Sequence[Use]], places: Mapping[str, Mapping[Path, Path]], meant: set[str]
) -> Iterator[Finding]:
    """What is wrong with parameters together; one that is misspelt, and told so, is not missing as well."""
    possible: dict[str, list[object]] = {name: ["unknown"] for name in meant}
    for name, known in uses.items():
        possible[name] = [check_value(name, use.value)[0] for use in known] or ["unknown"]
    for problem in combination_problems(possible):
        place = next(iter(places.get(problem.where, {}).values()), ("parameters",))
        yield _finding(problem, place)


def _check_size(space: Space | None, method: Any) -> Iterator[Finding]:
    size = space.grid_size() if space is not None and method == "grid" else None
    if size is not None and size > MOST_TRIALS:
        why = "W&B lists every trial of a grid before the first one starts."
        hint = "list fewer values, or method: random with run_cap"
        yield Finding(("parameters",), f"a grid of {size:,} trials", why, hint)


def _finding(problem: Problem, place: Path) -> Finding:
    return Finding(place, problem.what, problem.why, problem.hint)
