"""Parses the `parameters` section of a sweep: everything that W&B accepts, or every problem at once.

The section comes from a file or from a server's database. This module knows nothing about training: any sweep
that W&B accepts is a space.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kto_sweep.errors import Problem
from kto_sweep.search.distribution_forms import FORMS, NUMBER_KEYS
from kto_sweep.search.distributions import Continuous, Distribution
from kto_sweep.search.space import Parameter, Space
from kto_sweep.text import is_number, listed, nearest, number_from_text, show, show_number

Path = tuple[str, ...]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*", re.ASCII)


_ALL_KEYS = ("value", "values", "probabilities", "distribution", *sorted(NUMBER_KEYS))


def parse_space(section: Mapping[str, object]) -> tuple[Space | None, list[Problem]]:
    """The space that a `parameters` section describes, or None and every problem in it."""
    parameters, problems = parse_parameters(section)
    return (None if problems else Space(tuple(parameters))), problems


def parse_parameters(section: Mapping[str, object]) -> tuple[list[Parameter], list[Problem]]:
    """The parameters of a section and of the groups in it, and every problem."""
    parameters, problems = _parse_section(section, ())
    return parameters, [replace(problem, path=("parameters", *problem.path)) for problem in problems]


def _parse_section(section: Mapping[str, object], path: Path) -> tuple[list[Parameter], list[Problem]]:
    parameters: list[Parameter] = []
    problems: list[Problem] = []
    for name, entry in section.items():
        here = (*path, str(name))
        if not is_name(name):
            problems.append(_bad_name(here, name))
        elif isinstance(entry, Mapping) and "parameters" in entry:
            inner, wrong = _parse_group(entry, here)
            parameters += inner
            problems += wrong
        else:
            distribution, wrong = _parse_entry(entry, here)
            problems += wrong
            if distribution is not None:
                parameters.append(Parameter(here, distribution))
    return parameters, problems


def is_name(name: object) -> bool:
    """Whether W&B accepts `name` as a parameter's name."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def convert_numbers(entry: Mapping[str, object]) -> dict[str, object]:
    """One parameter's entry with text numbers (min: 5e-7) converted, except in value and values."""
    converted = {key: _as_number(value) if key in NUMBER_KEYS else value for key, value in entry.items()}
    shares = entry.get("probabilities")
    if isinstance(shares, list):
        converted["probabilities"] = [_as_number(share) for share in shares]
    return converted


def _bad_name(path: Path, name: object) -> Problem:
    return Problem(
        path,
        f"{show(name)} is not a parameter name",
        "A name is a letter or _, then letters, digits, _, . and -.",
        "rename it" if isinstance(name, str) else f'write it in quotes: "{name}"',
    )


def _parse_group(entry: Mapping[str, object], path: Path) -> tuple[list[Parameter], list[Problem]]:
    section = entry["parameters"]
    others = [
        Problem((*path, str(key)), f"{key} next to parameters", hint="move it below parameters")
        for key in entry
        if key != "parameters"
    ]
    if not isinstance(section, Mapping) or not section:
        what = f"{show(section)} is not a group of parameters"
        bad = Problem((*path, "parameters"), what, hint="write name: {values: [...]} entries below it")
        return [], [*others, bad]
    parameters, problems = _parse_section(section, (*path, "parameters"))
    # Keys in the file include `parameters`; the parameter's name does not.
    prefixed = [Parameter((*path, *p.path[len(path) + 1 :]), p.distribution) for p in parameters]
    return prefixed, others + problems


def _parse_entry(entry: object, path: Path) -> tuple[Distribution | None, list[Problem]]:
    if not isinstance(entry, Mapping):
        hint = f"value: {show(entry)}"
        if isinstance(entry, list):
            hint = f"values: {listed(entry)} for one trial each, or value: {listed(entry)} for all at once"
        return None, [Problem(path, f"{show(entry)} without value or values", hint=hint)]
    keys = convert_numbers(entry)
    name = _distribution_name(keys, path)
    if isinstance(name, Problem):
        return None, [name]
    form = FORMS[name]
    problems = [*_key_problems(name, keys, path), *_value_problems(keys, path)]
    if not problems:
        problems += _relation_problems(name, keys, path)
    if problems:
        return None, problems
    complete: dict[str, Any] = {
        **form.defaults,
        **{key: value for key, value in keys.items() if key != "distribution"},
    }
    try:
        distribution = form.build(complete)
        if not isinstance(distribution, Continuous) or math.isfinite(
            distribution.ppf(0) + distribution.ppf(1)
        ):
            return distribution, []
    except OverflowError:
        pass
    what = f"{name} with these numbers gives values too large to compute"
    return None, [Problem(path, what, hint=_exponent_hint(name))]


def _as_number(value: object) -> object:
    number = number_from_text(value) if isinstance(value, str) else None
    return value if number is None else number


def _distribution_name(keys: Mapping[str, Any], path: Path) -> str | Problem:
    """The distribution named in the entry, or the one that W&B infers from its keys."""
    if "distribution" in keys:
        name = keys["distribution"]
        if isinstance(name, str) and name in FORMS:
            return name
        hint = nearest(str(name), FORMS) or ", ".join(FORMS)
        return Problem((*path, "distribution"), f"{show(name)} is not a distribution of W&B", hint=hint)
    if "value" in keys:
        return "constant"
    if "values" in keys:
        return "categorical_w_probabilities" if "probabilities" in keys else "categorical"
    if "min" in keys and "max" in keys:
        return _inferred_range(keys["min"], keys["max"], "q" in keys, path)
    present = [key for key in _ALL_KEYS if key in keys]
    return Problem(
        path,
        f"{', '.join(present)} alone is not a distribution" if present else "has no value",
        "A parameter needs value, values, min and max, or distribution.",
        _missing_hint(keys),
    )


def _missing_hint(keys: Mapping[str, Any]) -> str:
    if "mu" in keys or "sigma" in keys:
        return "add distribution: normal (or log_normal)"
    if "a" in keys or "b" in keys:
        return "add distribution: beta"
    for key, other in (("min", "max"), ("max", "min")):
        if key in keys:
            return f"add {other}:"
    for key in keys:
        if near := nearest(str(key), _ALL_KEYS):
            return f"{near}: instead of {key}:"
    return "value: ... or values: [...]"


def _inferred_range(low: Any, high: Any, has_step: bool, path: Path) -> str | Problem:
    """int_uniform for two whole numbers, uniform for two fractions; W&B rejects a mixture."""
    if not is_number(low) or not is_number(high):
        return "uniform"  # _value_problems reports what is wrong with it
    if has_step:
        return Problem((*path, "q"), "q without a distribution", hint="add distribution: q_uniform")
    if isinstance(low, int) != isinstance(high, int):
        whole = "min" if isinstance(low, int) else "max"
        return Problem(
            path,
            f"min {show(low)} and max {show(high)} are a whole number and a fraction",
            "W&B infers int_uniform from two whole numbers and uniform from two fractions.",
            f"{whole}: {show_number(float(low if whole == 'min' else high))}, or add distribution: uniform",
        )
    return "int_uniform" if isinstance(low, int) else "uniform"


def _key_problems(name: str, keys: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    form = FORMS[name]
    for key in form.required:
        if key not in keys:
            yield Problem(path, f"{name} without {key}", hint=f"add {key}:")
    for key in keys:
        if key not in (*form.keys, "distribution"):
            takes = ", ".join(form.keys)
            yield Problem(
                (*path, str(key)),
                f"{show(key)} is not a key of {name}",
                f"{name} takes {takes}.",
                nearest(str(key), form.keys) or f"remove {key}",
            )


def _value_problems(keys: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    """Problems of each key's value on its own."""
    for key, value in keys.items():
        here = (*path, str(key))
        if key in NUMBER_KEYS and not is_number(value):
            yield Problem(here, f"{show(value)} is not a number")
        elif key in ("values", "probabilities") and (not isinstance(value, list) or not value):
            hint = "" if isinstance(value, list | Mapping) else f"{key}: [{show(value)}]"
            yield Problem(here, f"{show(value)} is not a list of {key}", hint=hint)
        elif key == "values":
            for i, item in enumerate(value):
                yield from _json_problems(item, (*here, str(i)))
        elif key == "value":
            yield from _json_problems(value, here)


def _json_problems(value: object, path: Path) -> Iterator[Problem]:
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _json_problems(item, (*path, str(i)))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _json_problems(item, (*path, str(key)))
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem(path, f"{value} is not a finite number", "A run's configuration is sent as JSON.")
    elif not isinstance(value, str | int | float | None):
        hint = f'write it in quotes: "{value}"'
        yield Problem(path, f"{value} is a {type(value).__name__} in YAML", hint=hint)


def _relation_problems(name: str, keys: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    """Problems of a key's value in combination with its distribution or with other keys."""
    form = FORMS[name]
    for key in form.positive:
        if key in keys and keys[key] <= 0:
            hint = _exponent_hint(name) if key in ("min", "max") else ""
            yield Problem((*path, key), f"{show(keys[key])} is not above 0", f"{name} needs {key} > 0.", hint)
    if name == "int_uniform":
        for key in ("min", "max"):
            if not isinstance(keys[key], int):
                whole = keys[key] == int(keys[key])
                hint = f"{key}: {int(keys[key])}" if whole else "distribution: uniform, for fractions"
                yield Problem((*path, key), f"{show(keys[key])} is not a whole number", hint=hint)
    if "min" in form.keys and keys["min"] >= keys["max"]:
        same = keys["min"] == keys["max"]
        hint = (
            f"value: {show(keys['min'])}" if same else f"min: {show(keys['max'])}, max: {show(keys['min'])}"
        )
        what = f"min {show(keys['min'])} is not below max {show(keys['max'])}"
        yield Problem((*path, "min"), what, hint=hint)
    if "probabilities" in keys:
        yield from _probability_problems(keys["values"], keys["probabilities"], (*path, "probabilities"))


def _probability_problems(
    values: Sequence[Any], probabilities: Sequence[Any], path: Path
) -> Iterator[Problem]:
    if not all(is_number(share) and share >= 0 for share in probabilities):
        yield Problem(path, f"{listed(probabilities)} are not all numbers of 0 or more")
    elif len(probabilities) != len(values):
        what = f"{len(probabilities)} probabilities for {len(values)} values"
        yield Problem(path, what, hint="one for each value")
    elif abs(math.fsum(probabilities) - 1) > 1e-6:
        yield Problem(
            path, f"the probabilities sum to {show(math.fsum(probabilities))}", hint="make the sum 1"
        )


def _exponent_hint(name: str) -> str:
    """A reminder of whether a log-uniform distribution's ends are exponents or values."""
    if name.endswith("log_uniform"):
        return f"min and max of {name} are exponents of e; to give values, use {name}_values"
    if name.endswith("log_normal"):
        return f"mu of {name} is the mean of ln(value): ln(0.1) is -2.3"
    if name.endswith("log_uniform_values"):
        return f"min and max of {name} are values, not exponents"
    return ""
