"""A sweep whose range of one parameter continues beyond the end at which the best value was found. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from kto_sweep.alerts import without_alert_rules
from kto_sweep.compare.ranking import Configuration
from kto_sweep.errors import UsageError
from kto_sweep.search.distributions import Continuous
from kto_sweep.search.options import BLOCK
from kto_sweep.search.range_ends import range_end, widened_entry
from kto_sweep.search.space import SEED, Parameter, Space, searched_names
from kto_sweep.sweep.follow_up import (
    FollowUp,
    Price,
    as_sweep_file,
    label,
    new_name,
    price,
    require_best,
    trials_to_train,
)
from kto_sweep.sweep.view import SweepView
from kto_sweep.text import is_number, nearest, number
from kto_sweep.trial import PARAMETERS, lookup, parameter_name

METHODS = ("grid", "bayes", "random")
_BY_HAND = "list other values by hand, in a new sweep file"


def widen(view: SweepView, best: Sequence[Configuration], name: str) -> FollowUp:
    """The sweep with a wider range of the parameter `name`; `best` has its configurations, best first.

    A grid reuses the finished trials, a Bayesian search starts with them. Raises UsageError if the parameter
    is not searched, has no ends, or its best value is at none of them.
    """
    if view.method not in METHODS:
        raise UsageError(f"{view.ref} has method {view.method}", hint=f"one of {', '.join(METHODS)}")
    parameter = _find(view, name)
    require_best(view, best)
    entry = _wider_entry(view, parameter, lookup(best[0].trials[0].config, parameter.name))
    section = _with_entry(without_alert_rules(view.config["parameters"]), parameter.path, entry)
    config = {**view.config, "parameters": section, "name": new_name(view.name, "wider")}
    notes, reuse, metric = [], None, view.config.get("metric")
    if isinstance(metric, Mapping) and _is_reached(view, best[0].values, metric.get("target")):
        config["metric"] = {key: value for key, value in metric.items() if key != "target"}
        notes.append("metric.target left out: the sweep has reached it")
    cost = _price(view, config)
    if view.method == "grid":
        reuse = str(view.ref)
    elif view.method == "bayes":
        config[BLOCK] = {**(view.config.get(BLOCK) or {}), "warm_start": [str(view.ref)]}
    else:
        notes.append("method random uses no earlier trials: all trials are new")
    return FollowUp(
        config=as_sweep_file(view, config),
        summary=f"Sweep {label(view)} with a wider range of {parameter.name}: {_range_text(entry)}",
        price=cost,
        notes=tuple(notes),
        reuse=reuse,
    )


def _find(view: SweepView, name: str) -> Parameter:
    """The searched parameter of this name: in full, in a list of mappings, or its last part.

    Raises UsageError.
    """
    searched = [parameter for parameter in view.space.searched if parameter.path[-1] != SEED]
    full = [p for p in searched if name == p.name or name in searched_names(Space((p,)))]
    short = [p for p in searched if name in (p.path[-1], parameter_name(p.path))]
    for matches in (full, short):
        if len(matches) == 1:
            return matches[0]
    if name.rpartition(".")[2] == SEED:
        raise UsageError(
            "seeds have no order: nothing to widen", hint=f"kto-sweep replicate {view.ref.argument}"
        )
    known = searched_names(Space(tuple(searched)))
    what = f"{name} is not searched in sweep {label(view)}"
    raise UsageError(what, hint=nearest(name, known) or (f"one of {', '.join(known)}" if known else ""))


def _wider_entry(view: SweepView, parameter: Parameter, value: Any) -> dict[str, Any]:
    """The parameter's entry, continued beyond the end at which `value` is. Raises UsageError."""
    name, distribution = parameter.name, parameter.distribution
    values = distribution.extremes()
    if any(isinstance(item, Mapping) for item in values):
        raise UsageError(f"{name} lists whole configurations", hint="widen the sweep that they come from")
    if not is_number(value) or not all(map(is_number, values)):
        raise UsageError(f"{name} has no ends: not all of its values are numbers", hint=_BY_HAND)
    if isinstance(distribution, Continuous) and distribution.bounds is None:
        raise UsageError(f"{name} has no ends: its distribution is {distribution.name}", hint=_BY_HAND)
    # Of two values, one is the better end; the user has decided that it says enough.
    end = range_end(parameter, value, min_values=2)
    entry = widened_entry(parameter, end) if end else None
    if entry is not None:
        return entry
    low, high = min(values), max(values)
    if value in (low, high):
        definition = PARAMETERS.get(parameter_name(parameter.path) or "")
        valid = f", which is {definition.type.description}" if definition else ""
        raise UsageError(f"nothing lies beyond the best {name} ({number(value)}){valid}", hint=_BY_HAND)
    raise UsageError(
        f"the best {name} ({number(value)}) is inside the range {number(low)} to {number(high)}: nothing to "
        "widen",
        hint=f"kto-sweep compare {view.ref.argument}",
    )


def _with_entry(
    section: Mapping[str, Any], path: tuple[str, ...], entry: Mapping[str, Any]
) -> dict[str, Any]:
    """A `parameters` section with another entry for one parameter."""
    name, *rest = path
    if not rest:
        return {**section, name: entry}
    group = section[name]
    return {**section, name: {**group, "parameters": _with_entry(group["parameters"], tuple(rest), entry)}}


def _range_text(entry: Mapping[str, Any]) -> str:
    if "values" in entry:
        return ", ".join(number(value) for value in entry["values"])
    return f"{number(entry['min'])} to {number(entry['max'])}"


def _is_reached(view: SweepView, values: Sequence[float], target: object) -> bool:
    if not is_number(target):
        return False
    return max(values) >= target if view.goal == "maximize" else min(values) <= target


def _price(view: SweepView, config: Mapping[str, Any]) -> Price:
    """The price of the trials of the new sweep that are not reused."""
    count = trials_to_train(view, config) if view.method == "grid" else config.get("run_cap")
    if count is None:
        return Price(None, None)
    return price(view, [([trial for trial in view.trials if trial.state == "finished"], count)])
