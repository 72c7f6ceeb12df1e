"""Trials left by dead agents of this home: continued if they belong to this sweep, otherwise reported."""

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from kto_sweep.agent.lease import (
    DEAD,
    OPEN_STATES,
    OrphanedTrial,
    find_orphaned_trials,
    of_sweep,
    release,
    remove_dead_leases,
    restore_files,
)
from kto_sweep.agent.state import Assignment
from kto_sweep.agent.wandb_run import checkpoint_step
from kto_sweep.home import Home
from kto_sweep.run_record import RunRecord, home_id
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import SweepView
from kto_sweep.wandb_client.connection import Target, is_deleted

if TYPE_CHECKING:
    import wandb


def restore_damaged(console: Console, target: Target, home: Home, view: SweepView) -> None:
    """Restore damaged records of this home's unfinished trials from the server."""
    ref, own = view.ref, home_id(home)
    base_url = os.environ.get("WANDB_BASE_URL", "")
    record = RunRecord(ref.entity, ref.project, ref.id, target.local, base_url, agent=DEAD, home=own)
    for trial in view.trials:
        if trial.device.split()[:1] != [own] or trial.state not in OPEN_STATES:
            continue
        if restore_files(home, trial.run_id, trial.config, record):
            console.print(f"Run {trial.run_id}: restored its damaged records", soft_wrap=True)


def find_trials_left(
    console: Console, api: "wandb.Api", target: Target, home: Home, ref: SweepRef
) -> list[Assignment]:
    """The trials of this sweep that dead agents of this home left behind; reports those of other sweeps."""
    remove_dead_leases(home)
    orphans = find_orphaned_trials(home)
    own = [orphan for orphan in orphans if of_sweep(orphan, ref)]
    if own:
        console.print(f"Continuing {_trials(own)} of this sweep that an earlier agent left unfinished")
    others: dict[SweepRef, list[OrphanedTrial]] = defaultdict(list)
    for orphan in orphans:
        record = orphan.record
        if not record.sweep:
            command = f"kto-sweep train --resume-from-checkpoint {orphan.run_id}"
            console.print(f"Run {orphan.run_id} is unfinished on this box: {command}", soft_wrap=True)
        elif orphan not in own:
            others[SweepRef(record.entity, record.project, record.sweep)].append(orphan)
    for other, trials in others.items():
        if _same_server(trials[0], target) and is_deleted(api, other):
            for orphan in trials:
                release(orphan)
            status = f"was deleted; the files of {_trials(trials)} stay in {home.runs}"
        else:
            status = f"has {_trials(trials)} unfinished on this box: kto-sweep agent {other.argument}"
        console.print(f"Sweep {other.id} {status}", soft_wrap=True)
    return [
        Assignment.from_config(
            orphan.run_id, orphan.config, done_steps=checkpoint_step(orphan.folder), orphan=orphan
        )
        for orphan in own
    ]


def _same_server(orphan: OrphanedTrial, target: Target) -> bool:
    record = orphan.record
    if record.local or target.local:
        return record.local and target.local
    return record.base_url == os.environ.get("WANDB_BASE_URL", "")


def _trials(orphans: Sequence[OrphanedTrial]) -> str:
    return f"{len(orphans)} trial{'' if len(orphans) == 1 else 's'}"
