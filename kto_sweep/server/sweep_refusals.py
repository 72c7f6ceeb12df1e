"""Sweep configurations that W&B refuses to register, in the words of its search (github.com/wandb/sweeps).

W&B asks its search for a first trial before it registers a sweep, so what cannot give one is refused. What
the search can live with, such as an unknown key at the top, is a warning.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kto_sweep.errors import Problem
from kto_sweep.search import grid
from kto_sweep.search.hyperband import parse_hyperband
from kto_sweep.search.space import Space
from kto_sweep.text import is_number

METHODS = ("grid", "random", "bayes")


def refusal_of_space(
    config: Mapping[str, Any], space: Space | None, problems: Sequence[Problem]
) -> str | None:
    """Why the server cannot search these parameters with this method; None if it can.

    `space` and `problems` are what `parse_space` made of the parameters.
    """
    return (
        _refusal_of_sections(config)
        or (_refusal_of_parameter(config["parameters"], problems[0]) if problems else None)
        or (_refusal_of_search(config["method"], space) if space is not None else None)
    )


def _refusal_of_sections(config: Mapping[str, Any]) -> str | None:
    method, parameters = config.get("method"), config.get("parameters")
    if method is None:
        return "Sweep config must contain method section"
    if parameters is None:
        return "Sweep config must contain parameters section"
    if not isinstance(parameters, Mapping) or not parameters:
        return "Parameters section of sweep config must be a dict of at least length 1"
    if method not in METHODS and not _has_local_controller(config, method):
        return f'Invalid search type {method}, must be one of ["grid", "random", "bayes"]'
    return None


def _refusal_of_search(method: str, space: Space) -> str | None:
    if method == "grid" and not grid.can_list(space):
        return _refusal_of_grid(space)
    if method == "bayes" and all(p.distribution.cell_count() == 1 for p in space.parameters):
        return "Need at least one searchable parameter for bayes search."
    return None


def _has_local_controller(config: Mapping[str, Any], method: object) -> bool:
    """Whether a `wandb.controller` of the client's searches, for which any method is valid."""
    controller = config.get("controller")
    return method == "custom" and isinstance(controller, Mapping) and controller.get("type") == "local"


def _refusal_of_parameter(parameters: Mapping[str, Any], problem: Problem) -> str:
    entry: Any = parameters
    for part in problem.path[1:]:
        inner = entry.get(part)
        if not isinstance(inner, Mapping):
            break
        entry = inner
    return f"{_words(problem.path[1], entry)} ({problem.one_line})"


def _words(name: str, entry: Mapping[str, Any]) -> str:
    """What W&B says of this entry."""
    low, high = entry.get("min"), entry.get("max")
    if is_number(low) and is_number(high) and low >= high:
        return f"{name}: min {low} is not less than max {high}"
    values, shares = entry.get("values"), entry.get("probabilities")
    if isinstance(values, list) and isinstance(shares, list) and values and shares:
        if len(values) != len(shares):
            return f"Parameter {name}: values {values} and probabilities {shares} are not the same length"
        if all(map(is_number, shares)):
            return f"Parameter {name}: Probabilities {shares} do not sum to 1"
    return f"invalid hyperparameter configuration: {name}"


def _refusal_of_grid(space: Space) -> str:
    endless = [p.name for p in space.parameters if p.distribution.cell_count() is None]
    if not endless:
        return "Grid search cannot visit so many values; use values: [...]"
    return (
        f"Parameter {endless[0]} is a disallowed type with grid search. Grid search requires all parameters"
        " to be categorical, constant, int_uniform, or q_uniform."
        f" (for {', '.join(endless)}, use values: [...])"
    )


def refusal_of_early_termination(section: object, *, has_metric: bool) -> str | None:
    """Why the server cannot apply an `early_terminate` section; None if it can or there is none."""
    if not section:
        return None
    if not isinstance(section, Mapping) or "type" not in section:
        return 'early terminate must be a dict with a "type" section'
    if section["type"] != "hyperband":
        return f'Invalid early stopping type {section["type"]}, must be one of ["hyperband"]'
    if not has_metric:
        return 'early terminate requires "metric" section'
    try:
        parse_hyperband(section)
    except ValueError as problem:
        return str(problem)
    return None
