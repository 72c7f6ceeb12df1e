"""Trials of earlier sweeps that a new one need not train again, or whose values its search can learn from."""

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
from kto_sweep.trial import Trial, lookup
from kto_sweep.wandb_client.connection import Target
from kto_sweep.wandb_client.reader import read_sweep

if TYPE_CHECKING:
    import wandb


def find_prior_runs(
    home: Home, api: "wandb.Api", target: Target, name: str, new: Mapping[str, Any]
) -> tuple[str, ...]:
    """The runs of sweep `name` that the sweep of configuration `new` can take over.

    `new` names the project (and the entity, if it is not the key's) where that sweep is to be.
    Raises UsageError when sweep `name` lies elsewhere: a run serves the sweeps of its own project alone.
    """
    ref = _find_here(home, target, name, new)
    return tuple(trial.run_id for trial in find_reusable(new, read_sweep(api, target, ref)))


def find_observations(
    home: Home, api: "wandb.Api", target: Target, names: Sequence[str], new: Mapping[str, Any]
) -> Iterator[tuple[SweepView, tuple[str, ...]]]:
    """Each of the named sweeps with its runs that the Bayesian search of configuration `new` can learn from.

    Raises UsageError when one lies elsewhere.
    """
    for name in names:
        earlier = read_sweep(api, target, _find_here(home, target, name, new))
        yield earlier, tuple(trial.run_id for trial in find_observed(new, earlier))


def _find_here(home: Home, target: Target, name: str, new: Mapping[str, Any]) -> SweepRef:
    """The sweep of that name, which must lie where the new one is to be. Raises UsageError."""
    there, ref = find_sweep(home, name, local=target.local)
    entity, project = new.get("entity") or ref.entity, new["project"]
    if (there.base_url, ref.entity, ref.project) != (target.base_url, entity, project):
        raise UsageError(
            f"{ref} at {there.app_url} is not in {entity}/{project} at {target.app_url}, where the new sweep "
            "is to be: a run serves the sweeps of its own project alone",
            hint=f"--entity {ref.entity} --project {ref.project}",
        )
    return ref


def find_reusable(config: Mapping[str, Any], earlier: SweepView) -> list[TrialRecord]:
    """The finished trials of `earlier` that are cells of the grid of this sweep configuration.

    A trial and a cell are the same when their whole configurations are: what is searched, what is fixed, data
    and model. Of several equal trials the first counts.
    Raises UsageError when the new sweep is no grid that can be listed.
    """
    space, _ = parse_space(without_alert_rules(config["parameters"]))
    if config["method"] != "grid" or space is None or not grid.can_list(space):
        raise UsageError(
            f"--reuse takes over the cells of a grid, and this sweep's method is {config['method']}",
            hint="use method: grid with values: [...], or leave --reuse out",
        )
    finished: dict[object, TrialRecord] = {}
    for trial in earlier.trials:
        if trial.state == "finished":
            finished.setdefault(value_key(dict(trial.config)), trial)
    same = (finished.get(value_key(cell)) for _, cell in grid.cells(space))
    return [trial for trial in same if trial is not None]


def find_observed(config: Mapping[str, Any], earlier: SweepView) -> list[TrialRecord]:
    """The finished trials of `earlier` that this search could have chosen, and that have all objectives.

    Seeds aside: all else must be the same, data and model too, or the values would not compare.
    """
    space, _ = parse_space(without_alert_rules(config["parameters"]))
    assert space is not None
    objectives = read_options(config, []).objectives
    metrics = [each.name for each in objectives] or [config["metric"]["name"]]
    cube = cube_of(space)
    return [
        trial
        for trial in earlier.trials
        if trial.state == "finished"
        and all(trial.value(metric) is not None for metric in metrics)
        and cube.point(trial.config) is not None
        and _is_of(space, trial.config)
    ]


def _is_of(space: Space, config: Mapping[str, Any]) -> bool:
    """Whether the trial is one of this space, given that the searched values are."""
    searched = {parameter.path: lookup(config, parameter.name) for parameter in space.searched}
    try:
        ours, theirs = (
            Trial.from_config(each) for each in (space.config(searched), without_alert_rules(config))
        )
    except TrialConfigError:
        return False
    return replace(ours, seed=theirs.seed) == theirs
