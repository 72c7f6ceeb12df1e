"""From a sweep file to a sweep on a server."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.disk import require_space
from kto_sweep.home import Home
from kto_sweep.local_server.login_tokens import login_link
from kto_sweep.plan.create_check import check_before_create
from kto_sweep.search.grid import in_order
from kto_sweep.search.space import Space
from kto_sweep.sweep.ref import SweepRef, remember
from kto_sweep.sweep.reuse import find_observations, find_prior_runs
from kto_sweep.sweep.server_choice import DEFAULT_PROJECT, find_target
from kto_sweep.sweep_file.kto_sweep_block import without_block
from kto_sweep.text import counted
from kto_sweep.wandb_client.connection import connect


@dataclass(frozen=True)
class Registered:
    """A sweep that the server has taken."""

    ref: SweepRef
    url: str
    method: str
    expected_trials: int | None
    """None when it has no end of its own."""
    reused: tuple[str, ...] = ()
    """Runs of an earlier sweep that it counts as its own."""
    login_url: str = ""
    """Opens the page on the embedded server in a browser that may then control sweeps; works once."""

    def summary(self) -> str:
        """Two lines for people."""
        many = self.expected_trials
        count = "trials without end" if many is None else f"{many} trial{'' if many == 1 else 's'}"
        taken = f", {len(self.reused)} of them taken over" if self.reused else ""
        return f"Sweep {self.ref}: {self.method}, {count}{taken}\n  {self.url}"


def register(
    home: Home,
    file: Path,
    *,
    project: str | None,
    entity: str | None,
    local: bool,
    say: Callable[[str], None],
    force: bool = False,
    reuse: str | None = None,
) -> Registered:
    """Check a sweep file, register it, and remember it as the sweep used last on this box.

    `reuse` names a sweep of the same project: its finished trials that are the same are not trained again.
    Raises SweepFileError with all problems of the file and its data, UsageError for cells that do not fit on
    this box's GPU (with `force` only what a server would refuse), ServerError when the server cannot be had.
    """
    from kto_sweep.wandb_client.private_api import create_sweep, is_embedded

    sweep = check_before_create(file, home, force=force, say=say)
    target = find_target(home, local=local)
    if target.local:
        require_space(home.root)  # else its server would have us wait until there is some
    say(f"Talking to the {target}" if target.local else f"Talking to {target}")
    if not target.local and sweep.method == "grid" and (note := order_note(sweep.space)):
        say(f"Note: {note}")
    api = connect(target)
    project = project or sweep.config.get("project") or DEFAULT_PROJECT
    entity = entity or sweep.config.get("entity")
    config, notes = (sweep.config, ()) if is_embedded(api) else without_block(sweep.config)
    for note in notes:
        say(f"Note: {note}")
    new = {**config, "project": project, "entity": entity}
    reused = find_prior_runs(home, api, target, reuse, new) if reuse else ()
    observed: list[str] = []
    for earlier, taken in find_observations(home, api, target, sweep.warm_start, new):
        many = counted(len(earlier.trials), "trial")
        say(f"Warm start: {len(taken)} of {many} of {earlier.ref} are observations")
        observed += taken
    prior = list(dict.fromkeys([*reused, *observed]))
    ref, warnings = create_sweep(api, config, project=project, entity=entity, prior_runs=prior)
    for warning in warnings:
        say(f"Note from the server: {warning}")
    remember(home, ref, local=target.local, base_url=target.base_url, file=str(file), folder=str(Path.cwd()))
    url = ref.url(target.app_url)
    page = url.removeprefix(target.app_url)
    login = login_link(target.app_url, target.key, time.time(), page) if target.local else ""
    return Registered(ref, url, sweep.method, sweep.expected_trials, reused, login)


def order_note(space: Space) -> str:
    """What to know of a grid that W&B visits in another order than trials can be trained together; or empty.

    W&B's grid goes by name alone.
    """
    ours = [parameter for parameter in in_order(space) if parameter.varies]
    moved = next((mine for mine, theirs in zip(ours, space.searched, strict=True) if mine != theirs), None)
    if moved is None:
        return ""
    return (
        f"W&B visits a grid by name, the last one fastest: {moved.name} changes before others do, and trials "
        "that differ in it cannot be trained together. In a group that comes first by its name it changes "
        f"slowest: base: {{parameters: {{{moved.path[-1]}: ...}}}}"
    )
