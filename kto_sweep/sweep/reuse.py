"""Finds trials of earlier sweeps that a new sweep reuses, as results or as observations for its search."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kto_sweep.alerts import without_alert_rules
from kto_sweep.errors import TrialConfigError, UsageError
from kto_sweep.home import Home
from kto_sweep.search import grid
from kto_sweep.search.axes import cube_of
from kto_sweep.search.distributions import value_key
from kto_sweep.search.options import read_options
from kto_sweep.search.space import Space
from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.server_choice import find_sweep
from kto_sweep.sweep.view import SweepView, TrialRecord
from kto_sweep.trial import Trial, lookup, with_defaults
from kto_sweep.wandb_client.connection import Target
from kto_sweep.wandb_client.reader import read_sweep

if TYPE_CHECKING:
    import wandb


def find_prior_runs(
    home: Home, api: "wandb.Api", target: Target, name: str, new: Mapping[str, Any]
) -> tuple[str, ...]:
    """The runs of sweep `name` that cover cells of the new sweep.

    `new` is the new sweep's configuration with its project, and its entity if that is not the key's.
    Raises UsageError if sweep `name` is in another project, because W&B requires prior runs in the same one.
    """
    ref = _find_in_project(home, target, name, new)
    return tuple(trial.run_id for trial in find_reusable(new, read_sweep(api, target, ref)))


def find_observations(
    home: Home, api: "wandb.Api", target: Target, names: Sequence[str], new: Mapping[str, Any]
) -> Iterator[tuple[SweepView, tuple[str, ...]]]:
    """Each named sweep with its runs that the Bayesian search of `new` can use as observations.

    Raises UsageError if one is in another project.
    """
    for name in names:
        earlier = read_sweep(api, target, _find_in_project(home, target, name, new))
        yield earlier, tuple(trial.run_id for trial in find_observed(new, earlier))


def _find_in_project(home: Home, target: Target, name: str, new: Mapping[str, Any]) -> SweepRef:
    """The sweep with this name in the new sweep's project. Raises UsageError if it is in another one."""
    server, ref = find_sweep(home, name, local=target.local)
    entity, project = new.get("entity") or ref.entity, new["project"]
    if (server.base_url, ref.entity, ref.project) != (target.base_url, entity, project):
        raise UsageError(
            f"{ref} at {server.app_url} is not in the new sweep's project, {entity}/{project} at "
            f"{target.app_url}: runs can only be reused within their project",
            hint=f"--entity {ref.entity} --project {ref.project}",
        )
    return ref


def find_reusable(config: Mapping[str, Any], earlier: SweepView) -> list[TrialRecord]:
    """The finished trials of `earlier` that match a cell of this configuration's grid, one per cell.

    The whole configuration must be equal: searched and fixed parameters, defaults, data and model. Of several
    equal trials, the first is used.
    Raises UsageError if the new sweep is not a grid of listed values.
    """
    space, _ = parse_space(without_alert_rules(config["parameters"]))
    if config["method"] != "grid" or space is None or not grid.can_list(space):
        raise UsageError(
            f"--reuse needs a grid of listed values; this sweep's method is {config['method']}",
            hint="use method: grid with values: [...], or drop --reuse",
        )
    finished: dict[object, TrialRecord] = {}
    for trial in earlier.trials:
        if trial.state == "finished" and not trial.failure:
            finished.setdefault(value_key(dict(trial.config)), trial)
    # A run has all defaults, unless another program or an earlier version trained it. These are not added to
    # it here, because the server compares what its configuration has with the cell's parameters.
    matches = (
        finished.get(value_key(with_defaults(cell))) or finished.get(value_key(cell))
        for _, cell in grid.cells(space)
    )
    return [trial for trial in matches if trial is not None]


def find_observed(config: Mapping[str, Any], earlier: SweepView) -> list[TrialRecord]:
    """The finished trials of `earlier` that this search could have suggested and that have all objectives.

    Everything except the seed must match, including data and model, or the values are not comparable.
    """
    space, _ = parse_space(without_alert_rules(config["parameters"]))
    assert space is not None
    objectives = read_options(config, []).objectives
    metrics = [objective.name for objective in objectives] or [config["metric"]["name"]]
    cube = cube_of(space)
    return [
        trial
        for trial in earlier.trials
        if trial.state == "finished"
        and not trial.failure
        and all(trial.value(metric) is not None for metric in metrics)
        and cube.point(trial.config) is not None
        and _matches_fixed(space, trial.config)
    ]


def _matches_fixed(space: Space, config: Mapping[str, Any]) -> bool:
    """Whether the trial matches the space in all parameters that are not searched, except the seed."""
    searched = {parameter.path: lookup(config, parameter.name) for parameter in space.searched}
    try:
        expected, actual = (
            Trial.from_config(values) for values in (space.config(searched), without_alert_rules(config))
        )
    except TrialConfigError:
        return False
    return replace(expected, seed=actual.seed) == actual
