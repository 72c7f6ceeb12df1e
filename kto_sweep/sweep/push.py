"""A sweep of the embedded server played again to another W&B server: its runs, as if they were logged there.

wandb itself does the writing. What it decides alone stays its own: when a run was created, and `_runtime`.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb

from kto_sweep.errors import ServerError
from kto_sweep.home import Home
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import RUNNING, SweepView
from kto_sweep.sweep_file.kto_sweep_block import without_block
from kto_sweep.wandb_client.connection import Target, connect, is_deleted, is_unknown, trouble
from kto_sweep.wandb_client.private_api import create_sweep, set_run_state, set_sweep_state
from kto_sweep.wandb_client.reader import read_sweep

PATIENCE = 600.0
"""Seconds that a run's last rows may take to arrive."""


@dataclass(frozen=True)
class Pushed:
    """What became of each run of a sweep that was pushed."""

    ref: SweepRef
    """The sweep on the other server."""
    url: str
    sent: tuple[str, ...]
    present: tuple[str, ...]
    """Were there already."""
    unfinished: tuple[str, ...]
    """Not over here, to be pushed when they are."""


def push(
    home: Home,
    source: Target,
    ref: SweepRef,
    destination: Target,
    *,
    project: str | None,
    entity: str | None,
    say: Callable[[str], None],
) -> Pushed:
    """Send what the other server does not have yet of this sweep; one that was cut off goes on.

    Raises ServerError when a server cannot be had or does not take the sweep.
    """
    api = connect(destination)
    reader = wandb.Api(overrides={"base_url": source.base_url}, api_key=source.key, timeout=30)
    view = read_sweep(reader, source, ref)
    runs = list(reader.runs(f"{ref.entity}/{ref.project}", filters={"sweep": ref.id}, lazy=False))
    project, entity = project or ref.project, entity or str(api.default_entity)
    there = _runs_there(api, f"{entity}/{project}", [run.id for run in runs])
    note = _Note(home.root / "pushed" / f"{ref.id}.json", f"{destination.base_url} {entity}/{project}")
    ours = _find_sweep(api, destination, SweepRef(entity, project, note.read()), ref, runs, there)
    if ours is None:
        # A run that belongs to another sweep there stays in it, and counts for this one as well.
        config, _ = without_block(reader.sweep(str(ref)).config)
        ours, _ = create_sweep(api, config, project=project, entity=entity, prior_runs=list(there))
        note.write(ours.id)
    sent, present, unfinished = [], [], []
    for number, run in enumerate(runs, start=1):
        if run.state in RUNNING:
            unfinished.append(run.id)
        elif run.id in there and _is_whole(there[run.id], run):
            present.append(run.id)
        else:
            say(f"run {number} of {len(runs)}: {run.id} ({run.state})")
            try:
                _send(api, ours, run)
            except (wandb.Error, TimeoutError) as error:
                raise ServerError(
                    f"run {run.id} could not be sent to {destination}: {error}",
                    hint="type the same again: what is there is not sent twice",
                ) from error
            sent.append(run.id)
    _end_sweep(api, destination, ours, view, unfinished)
    url = ours.url(destination.app_url)
    return Pushed(ours, url, tuple(sent), tuple(present), tuple(unfinished))


class _Note:
    """Remembers which sweep of a server is this one: a push can be cut off before the first run is there."""

    def __init__(self, path: Path, place: str) -> None:
        self._path = path
        self._place = place

    def read(self) -> str:
        """The sweep's id there, or nothing."""
        return str(self._all().get(self._place, ""))

    def write(self, sweep_id: str) -> None:
        """Keep the sweep's id there."""
        known = self._all() | {self._place: sweep_id}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._path.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps(known) + "\n")
        scratch.replace(self._path)

    def _all(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):
            return {}


def _runs_there(api: wandb.Api, place: str, run_ids: list[str]) -> dict[str, Any]:
    """Those of the runs that the project has; none when there is no such project yet.

    Raises ServerError when it cannot be asked.
    """
    try:
        found = api.runs(place, filters={"name": {"$in": run_ids}}, lazy=False)
        return {run.id: run for run in found}
    except Exception as error:  # wandb has no one class for what can go wrong
        if is_unknown(error):
            return {}
        raise ServerError(
            f"{place} cannot be looked at: {trouble(error)}", hint="type the same again later"
        ) from error


def _find_sweep(
    api: wandb.Api,
    destination: Target,
    noted: SweepRef,
    ref: SweepRef,
    runs: list[Any],
    there: Mapping[str, Any],
) -> SweepRef | None:
    """The sweep that an earlier push has made, by what was noted or else by its runs.

    Raises ServerError when it cannot be asked.
    """
    own = {run.id for run in runs if run.sweep_name == ref.id}
    names = [noted.id, *(run.sweep_name for run in there.values() if run.id in own)]
    for name in dict.fromkeys(name for name in names if name):
        found = SweepRef(noted.entity, noted.project, name)
        try:
            read_sweep(api, destination, found)
        except ServerError:
            if is_deleted(api, found):
                continue
            raise
        return found
    return None


def _is_whole(there: Any, run: Any) -> bool:
    """Whether the other server has everything of the run, its end too."""
    # How a run failed not every server takes over: see `_send`.
    badly = {"failed", "killed"}
    if there.state != run.state and not (there.state in badly and run.state in {*badly, "crashed"}):
        return False
    mine, others = run.summary_metrics or {}, there.summary_metrics or {}
    return others.get("_step") == mine.get("_step") and _public(mine).keys() <= others.keys()


def _public(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what wandb keeps for itself."""
    return {name: value for name, value in values.items() if not name.startswith("_")}


def _send(api: wandb.Api, sweep: SweepRef, run: Any) -> None:
    """Log the run again under its id; where a push was cut off, from the next step on.

    Raises wandb.Error or TimeoutError when the server cannot be had.
    """
    settings = wandb.Settings(
        mode="online",
        sweep_id=sweep.id,
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        # The box that pushes is not the one that trained.
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_file_stream_transmit_interval=2,
        finish_timeout=PATIENCE,
        finish_timeout_raises=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        copy = wandb.init(
            entity=sweep.entity,
            project=sweep.project,
            id=run.id,
            name=run.name,
            notes=run.notes,
            tags=run.tags,
            group=run.group,
            job_type=run.job_type,
            config=_public(run.config),
            resume="allow",
            reinit="create_new",
            dir=folder,
            settings=settings,
        )
        for row in run.scan_history():
            if row["_step"] >= copy.starting_step:
                # Committed at once: a row that waits would overwrite the summary.
                values = {name: value for name, value in row.items() if name not in {"_step", "_runtime"}}
                copy.log(values, step=row["_step"], commit=True)
        copy.summary.update(_public(run.summary_metrics or {}))
        if run.state == "killed":
            api.run(f"{sweep.entity}/{sweep.project}/{run.id}").stop()
        copy.finish(exit_code=0 if run.state == "finished" else 1)
    if run.state == "crashed":
        # W&B knows a crash by silence alone and shows it as failed.
        set_run_state(api, sweep, run.id, "crashed")


def _end_sweep(
    api: wandb.Api, destination: Target, sweep: SweepRef, view: SweepView, unfinished: list[str]
) -> None:
    """Close the sweep there as it is closed here."""
    over = {"FINISHED", "CANCELED"}
    if view.state in over and not unfinished and read_sweep(api, destination, sweep).state not in over:
        set_sweep_state(api, sweep, "CANCELED" if view.state == "CANCELED" else "FINISHED")
