"""Trials of an earlier sweep that a new one need not train again."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kto_sweep.alerts import without_rules
from kto_sweep.errors import UsageError
from kto_sweep.home import Home
from kto_sweep.search import grid
from kto_sweep.search.distributions import value_key
from kto_sweep.search.space import parse_space
from kto_sweep.sweep.remote import SweepView, TrialRecord, read_sweep
from kto_sweep.sweep.target import Target, find_sweep

if TYPE_CHECKING:
    import wandb


def find_prior_runs(
    home: Home, api: "wandb.Api", target: Target, name: str, new: Mapping[str, Any]
) -> tuple[str, ...]:
    """The runs of sweep `name` that the sweep of configuration `new` can take over.

    `new` names the project (and the entity, if it is not the key's) where that sweep is to be.
    Raises UsageError when sweep `name` lies elsewhere: a run serves the sweeps of its own project alone.
    """
    there, ref = find_sweep(home, name, local=target.local)
    entity, project = new.get("entity") or ref.entity, new["project"]
    if (there.base_url, ref.entity, ref.project) != (target.base_url, entity, project):
        raise UsageError(
            f"{ref} at {there.app_url} is not in {entity}/{project} at {target.app_url}, where the new sweep "
            "is to be: a run serves the sweeps of its own project alone",
            hint=f"--entity {ref.entity} --project {ref.project}",
        )
    return tuple(trial.run_id for trial in find_reusable(new, read_sweep(api, target, ref)))


def find_reusable(config: Mapping[str, Any], earlier: SweepView) -> list[TrialRecord]:
    """The finished trials of `earlier` that are cells of the grid of this sweep configuration.

    A trial and a cell are the same when their whole configurations are: what is searched, what is fixed, data
    and model. Of several equal trials the first counts.
    Raises UsageError when the new sweep is no grid that can be listed.
    """
    space, _ = parse_space(without_rules(config["parameters"]))
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
