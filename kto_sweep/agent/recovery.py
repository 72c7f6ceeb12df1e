"""Trials that dead agents of this home have left: continued if they are of this sweep, else reported."""

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
    forget_dead,
    of_sweep,
    release,
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
    """Write damaged records of this home's unfinished trials again, as the server has them."""
    ref, own = view.ref, home_id(home)
    base_url = os.environ.get("WANDB_BASE_URL", "")
    record = RunRecord(ref.entity, ref.project, ref.id, target.local, base_url, agent=DEAD, home=own)
    for trial in view.trials:
        ours = trial.device.split()[:1] == [own]
        if ours and trial.state in OPEN_STATES and restore_files(home, trial.run_id, trial.config, record):
            console.print(f"Run {trial.run_id}: its damaged records were written again", soft_wrap=True)


def find_trials_left(
    console: Console, api: "wandb.Api", target: Target, home: Home, ref: SweepRef
) -> list[Assignment]:
    """The trials that dead agents of this home have left of this sweep; those of others are reported."""
    forget_dead(home)
    orphans = find_orphaned_trials(home)
    ours = [orphan for orphan in orphans if of_sweep(orphan, ref)]
    if ours:
        console.print(f"An earlier agent has left {_trials(ours)} of this sweep: continuing with them")
    others: dict[SweepRef, list[OrphanedTrial]] = defaultdict(list)
    for orphan in orphans:
        record = orphan.record
        if not record.sweep:
            command = f"kto-sweep train --resume-from-checkpoint {orphan.run_id}"
            console.print(f"Run {orphan.run_id} is unfinished here: {command}", soft_wrap=True)
        elif orphan not in ours:
            others[SweepRef(record.entity, record.project, record.sweep)].append(orphan)
    for other, left in others.items():
        if _same_server(left[0], target) and is_deleted(api, other):
            for orphan in left:
                release(orphan)
            status = f"was deleted; what this box has of {_trials(left)} stays in {home.runs}"
        else:
            status = f"has {_trials(left)} unfinished here: kto-sweep agent {other.id}"
        console.print(f"Sweep {other.id} {status}", soft_wrap=True)
    return [
        Assignment.from_config(
            orphan.run_id, orphan.config, done_steps=checkpoint_step(orphan.folder), orphan=orphan
        )
        for orphan in ours
    ]


def _same_server(orphan: OrphanedTrial, target: Target) -> bool:
    record = orphan.record
    if record.local or target.local:
        return record.local and target.local
    return record.base_url == os.environ.get("WANDB_BASE_URL", "")


def _trials(orphans: Sequence[OrphanedTrial]) -> str:
    return f"{len(orphans)} trial{'' if len(orphans) == 1 else 's'}"
