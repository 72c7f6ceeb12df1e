"""What dead agents of this home have left: gone on with where it is of this sweep, else spoken of."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from kto_sweep.agent.presence import DEAD, OPEN_STATES, Orphan, find_orphans, forget_dead, of_sweep, restore
from kto_sweep.home import Home
from kto_sweep.run_record import RunRecord, home_id
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import SweepView
from kto_sweep.wandb_client.connection import Target, is_deleted

if TYPE_CHECKING:
    import wandb


def restore_damaged(console: Console, target: Target, home: Home, view: SweepView) -> None:
    """Have the server say what a crash has damaged in the folders of this home's unfinished trials."""
    ref, own = view.ref, home_id(home)
    base_url = os.environ.get("WANDB_BASE_URL", "")
    record = RunRecord(ref.entity, ref.project, ref.id, target.local, base_url, agent=DEAD, home=own)
    for trial in view.trials:
        ours = trial.device.split()[:1] == [own]
        if ours and trial.state in OPEN_STATES and restore(home, trial.run_id, trial.config, record):
            console.print(
                f"Run {trial.run_id}: what is damaged of its records was written anew", soft_wrap=True
            )


def find_work_left(
    console: Console, api: "wandb.Api", target: Target, home: Home, ref: SweepRef
) -> list[Orphan]:
    """The trials of this sweep that dead agents of this home have left; those of others are spoken of."""
    forget_dead(home)
    orphans = find_orphans(home)
    ours = [orphan for orphan in orphans if of_sweep(orphan, ref)]
    if ours:
        console.print(f"An earlier agent has left {_trials(ours)} of this sweep: going on with them")
    others: dict[SweepRef, list[Orphan]] = defaultdict(list)
    for orphan in orphans:
        record = orphan.record
        if not record.sweep:
            told = f"kto-sweep train --resume-from-checkpoint {orphan.run_id}"
            console.print(f"Run {orphan.run_id} is unfinished here: {told}", soft_wrap=True)
        elif orphan not in ours:
            others[SweepRef(record.entity, record.project, record.sweep)].append(orphan)
    for other, left in others.items():
        if _same_server(left[0], target) and is_deleted(api, other):
            for orphan in left:
                replace(orphan.record, agent="").write(orphan.folder)  # nobody need ask again
            told = f"was deleted; what this box has of {_trials(left)} stays in {home.runs}"
        else:
            told = f"has {_trials(left)} unfinished here: kto-sweep agent {other.id}"
        console.print(f"Sweep {other.id} {told}", soft_wrap=True)
    return ours


def _same_server(orphan: Orphan, target: Target) -> bool:
    record = orphan.record
    if record.local or target.local:
        return record.local and target.local
    return record.base_url == os.environ.get("WANDB_BASE_URL", "")


def _trials(orphans: Sequence[Orphan]) -> str:
    return f"{len(orphans)} trial{'' if len(orphans) == 1 else 's'}"
