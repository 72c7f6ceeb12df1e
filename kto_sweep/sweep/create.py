"""Checks a sweep file and registers it on a server."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.disk import require_space
from kto_sweep.env_vars import ENTITY, PROJECT
from kto_sweep.home import Home
from kto_sweep.plan.create_check import check_before_create
from kto_sweep.search.grid import in_order
from kto_sweep.search.space import Space
from kto_sweep.sweep.ref import DEFAULT_PROJECT, LOCAL_ENTITY, SweepRef, save_sweep_record
from kto_sweep.sweep.reuse import find_observations, find_prior_runs
from kto_sweep.sweep.server_choice import find_target
from kto_sweep.sweep_file.kto_sweep_block import without_block
from kto_sweep.text import counted
from kto_sweep.wandb_client.connection import Target, connect
from kto_sweep.wandb_names import require_name


@dataclass(frozen=True)
class CreatedSweep:
    """A registered sweep."""

    target: Target
    ref: SweepRef
    url: str
    method: str
    expected_trials: int | None
    """None for an unlimited sweep."""
    reused: tuple[str, ...] = ()
    """Runs of an earlier sweep that count for this one."""

    def summary(self, link: str) -> str:
        """Two lines for people; `link` opens its page."""
        expected = self.expected_trials
        trials = "unlimited trials" if expected is None else counted(expected, "trial")
        reused = f", {len(self.reused)} of them reused" if self.reused else ""
        return f"Sweep {self.ref}: {self.method}, {trials}{reused}\n  {link}"

    @property
    def is_finished(self) -> bool:
        """Whether an earlier sweep has finished all its trials."""
        return self.expected_trials is not None and len(self.reused) >= self.expected_trials


def create_sweep(
    home: Home,
    file: Path,
    *,
    project: str | None,
    entity: str | None,
    local: bool,
    say: Callable[[str], None],
    force: bool = False,
    reuse: str | None = None,
) -> CreatedSweep:
    """The sweep in a file, checked, registered, and recorded as the last one used on this box.

    `reuse` names a sweep of the same project; its finished trials with an identical configuration are not
    trained again.
    Raises SweepFileError with all problems of the file and its data, UsageError for cells that do not fit on
    this box's GPU (with `force` only for errors that a server would reject), ServerError if the server cannot
    be reached.
    """
    from kto_sweep.wandb_client.private_api import set_sweep_state, upsert_sweep

    require_name("project", project, "--project")
    require_name("entity", entity, "--entity")
    require_name("project", os.environ.get(PROJECT) or None, PROJECT)
    require_name("entity", os.environ.get(ENTITY) or None, ENTITY)
    sweep = check_before_create(file, home, force=force, say=say)
    target = find_target(home, local=local)
    if target.local:
        require_space(home.root)  # with a full disk, the embedded server would wait for space
    api = connect(target)
    say(f"Talking to {target}")
    if not target.is_embedded and sweep.method == "grid" and (note := grid_order_note(sweep.space)):
        say(f"Note: {note}")
    project = project or sweep.config.get("project") or os.environ.get(PROJECT) or DEFAULT_PROJECT
    default_entity = LOCAL_ENTITY if target.is_embedded else os.environ.get(ENTITY)
    entity = entity or sweep.config.get("entity") or default_entity
    config, notes = (sweep.config, ()) if target.is_embedded else without_block(sweep.config)
    for note in notes:
        say(f"Note: {note}")
    new = {**config, "project": project, "entity": entity}
    reused = find_prior_runs(home, api, target, reuse, new) if reuse else ()
    observed: list[str] = []
    for earlier, run_ids in find_observations(home, api, target, sweep.warm_start, new):
        total = counted(len(earlier.trials), "trial")
        say(f"Warm start: {len(run_ids)} of {total} of {earlier.ref} used as observations")
        observed += run_ids
    prior_runs = list(dict.fromkeys([*reused, *observed]))
    ref, warnings = upsert_sweep(api, config, project=project, entity=entity, prior_runs=prior_runs)
    for warning in warnings:
        say(f"Note from the server: {warning}")
    save_sweep_record(
        home, ref, local=target.local, base_url=target.base_url, file=str(file), folder=str(Path.cwd())
    )
    url = ref.url(target.app_url)
    created = CreatedSweep(target, ref, url, sweep.method, sweep.expected_trials, reused)
    if created.is_finished:  # otherwise it would wait for an agent that has nothing to train
        set_sweep_state(api, ref, "FINISHED")
    return created


def grid_order_note(space: Space) -> str:
    """A note when W&B's order of a grid separates trials that could be trained together; else empty.

    W&B orders a grid by parameter name alone.
    """
    own_order = [parameter for parameter in in_order(space) if parameter.varies]
    moved = next((own for own, wandbs in zip(own_order, space.searched, strict=True) if own != wandbs), None)
    if moved is None:
        return ""
    return (
        f"W&B iterates a grid by parameter name, the last name fastest. Here {moved.name} changes early, but "
        "trials that differ in it cannot be trained together. To make it change slowest, put it in a group "
        f"whose name sorts first: base: {{parameters: {{{moved.path[-1]}: ...}}}}"
    )
