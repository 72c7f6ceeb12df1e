"""Copies a sweep from the embedded server to another W&B server by logging its runs again there.

The wandb SDK writes the runs. It sets a run's creation time and `_runtime` itself, so these are not copied.
"""

import contextlib
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
from kto_sweep.json_file import parse_json
from kto_sweep.sweep.push_files import copy_artifacts, copy_files, row_to_copy
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import UNFINISHED, SweepView
from kto_sweep.sweep_file.kto_sweep_block import without_block
from kto_sweep.wandb_client.connection import Target, connect, error_text, is_deleted, is_not_found
from kto_sweep.wandb_client.private_api import set_run_state, set_sweep_state, upsert_sweep
from kto_sweep.wandb_client.reader import read_sweep
from kto_sweep.wandb_names import require_name

FINISH_TIMEOUT = 600.0
"""Seconds to wait for the server to receive a run's last rows."""


@dataclass(frozen=True)
class PushedSweep:
    """A sweep that was copied to another server, and its runs by result."""

    ref: SweepRef
    """The sweep on the other server."""
    url: str
    sent: tuple[str, ...]
    already_there: tuple[str, ...]
    unfinished: tuple[str, ...]
    """Not pushed: still unfinished on the embedded server."""


def push_sweep(
    home: Home,
    source: Target,
    ref: SweepRef,
    destination: Target,
    *,
    project: str | None,
    entity: str | None,
    say: Callable[[str], None],
) -> PushedSweep:
    """The sweep on `destination` with every finished run of the source; continues an interrupted push.

    Raises ServerError if a server cannot be reached or rejects the sweep.
    """
    require_name("project", project, "--project")
    require_name("entity", entity, "--entity")
    api = connect(destination)
    reader = wandb.Api(overrides={"base_url": source.base_url}, api_key=source.key, timeout=30)
    view = read_sweep(reader, source, ref)
    runs = list(reader.runs(f"{ref.entity}/{ref.project}", filters={"sweep": ref.id}, lazy=False))
    project, entity = project or ref.project, entity or str(api.default_entity)
    copies = _existing_runs(api, f"{entity}/{project}", [run.id for run in runs])
    record = _PushRecord(
        home.root / "pushed" / f"{ref.id}.json", f"{destination.base_url} {entity}/{project}"
    )
    copy = _find_pushed_sweep(api, destination, SweepRef(entity, project, record.read()), ref, runs, copies)
    if copy is None:
        # A run that is part of another sweep on the destination stays there and also counts for this one.
        config, _ = without_block(reader.sweep(str(ref)).config)
        copy, _ = upsert_sweep(api, config, project=project, entity=entity, prior_runs=list(copies))
        record.write(copy.id)
    sent, already_there, unfinished = [], [], []
    for number, run in enumerate(runs, start=1):
        if run.state in UNFINISHED:
            unfinished.append(run.id)
        elif run.id in copies and _is_complete(copies[run.id], run):
            already_there.append(run.id)
        else:
            say(f"run {number} of {len(runs)}: {run.id} ({run.state})")
            try:
                _send(api, copy, run, say)
            except (wandb.Error, OSError) as error:
                raise ServerError(
                    f"run {run.id} could not be sent to {destination}: {error}",
                    hint="run the same command again; it sends nothing twice",
                ) from error
            sent.append(run.id)
    _end_sweep(api, destination, copy, view, unfinished)
    url = copy.url(destination.app_url)
    return PushedSweep(copy, url, tuple(sent), tuple(already_there), tuple(unfinished))


class _PushRecord:
    """The id of a sweep's copy in each project that it was pushed to.

    It is kept in a file, because a push may be interrupted before the destination has a run that identifies
    the copy.
    """

    def __init__(self, path: Path, destination: str) -> None:
        self._path = path
        self._destination = destination

    def read(self) -> str:
        """The id of the copy; empty if none."""
        return str(self._all().get(self._destination, ""))

    def write(self, sweep_id: str) -> None:
        """Save the id of the copy."""
        ids = self._all() | {self._destination: sweep_id}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._path.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps(ids) + "\n")
        scratch.replace(self._path)

    def _all(self) -> dict[str, Any]:
        try:
            return dict(parse_json(self._path.read_text()))
        except (OSError, ValueError, TypeError):
            return {}


def _existing_runs(api: wandb.Api, project: str, run_ids: list[str]) -> dict[str, Any]:
    """The project's runs with these ids, by id; empty if the project does not exist yet.

    Raises ServerError if the server does not respond.
    """
    try:
        runs = api.runs(project, filters={"name": {"$in": run_ids}}, lazy=False)
        return {run.id: run for run in runs}
    except Exception as error:  # wandb has no common error class
        if is_not_found(error):
            return {}
        raise ServerError(
            f"could not list the runs of {project}: {error_text(error)}", hint="try again later"
        ) from error


def _find_pushed_sweep(
    api: wandb.Api,
    destination: Target,
    recorded: SweepRef,
    ref: SweepRef,
    runs: list[Any],
    copies: Mapping[str, Any],
) -> SweepRef | None:
    """The sweep that an earlier push created: the recorded one, else the sweep of the copied runs.

    Raises ServerError if the server does not respond.
    """
    own = {run.id for run in runs if run.sweep_name == ref.id}
    ids = [recorded.id, *(copy.sweep_name for copy in copies.values() if copy.id in own)]
    for sweep_id in dict.fromkeys(sweep_id for sweep_id in ids if sweep_id):
        candidate = SweepRef(recorded.entity, recorded.project, sweep_id)
        try:
            read_sweep(api, destination, candidate)
        except ServerError:
            if is_deleted(api, candidate):
                continue
            raise
        return candidate
    return None


def _is_complete(copy: Any, run: Any) -> bool:
    """Whether the copy has the run's end, last step and summary."""
    # Not every server accepts how a run failed: see `_send`.
    unsuccessful = {"failed", "killed"}
    same_end = copy.state in unsuccessful and run.state in {*unsuccessful, "crashed"}
    if copy.state != run.state and not same_end:
        return False
    summary, copied = run.summary_metrics or {}, copy.summary_metrics or {}
    # A run that was resumed without a new row has lost its step.
    return summary.get("_step") in {None, copied.get("_step")} and _public(summary).keys() <= copied.keys()


def _public(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without wandb's internal keys, which start with `_`."""
    return {name: value for name, value in values.items() if not name.startswith("_")}


def _send(api: wandb.Api, sweep: SweepRef, run: Any, say: Callable[[str], None]) -> None:
    """Log the run again under its id, from the copy's next step if it was partly sent.

    Raises wandb.Error or OSError, such as TimeoutError, if a server cannot be reached.
    """
    settings = wandb.Settings(
        mode="online",
        sweep_id=sweep.id,
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        # Metadata and system metrics would describe this box, not the one that trained.
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_file_stream_transmit_interval=2,
        finish_timeout=FINISH_TIMEOUT,
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
        for row in run.scan_history(use_cache=False):
            if row["_step"] >= copy.starting_step:
                # Commit at once: a pending row would later overwrite the summary.
                values = {
                    name: _as_logged(value)
                    for name, value in row.items()
                    if name not in {"_step", "_runtime"} and value is not None
                }
                copy.log(row_to_copy(values), step=row["_step"], commit=True)
        copy_files(run, copy, Path(folder, "files"))
        copy_artifacts(api, run, copy, Path(folder, "artifacts"), say)
        copy.summary.update(row_to_copy(_public(run.summary_metrics or {})))
        if run.state == "killed":
            api.run(f"{sweep.entity}/{sweep.project}/{run.id}").stop()
        copy.finish(exit_code=0 if run.state == "finished" else 1)
    if run.state == "crashed":
        # W&B infers a crash only from missing heartbeats, so it shows this run as failed.
        set_run_state(api, sweep, run.id, "crashed")


def _as_logged(value: Any) -> Any:
    """A value of a row from an exported history, where wandb's objects, such as images, are JSON.

    Such a row also has None for each metric that it lacks.
    """
    if isinstance(value, str) and value.startswith("{") and '"_type"' in value:
        with contextlib.suppress(ValueError):
            return parse_json(value)
    return value


def _end_sweep(
    api: wandb.Api, destination: Target, sweep: SweepRef, view: SweepView, unfinished: list[str]
) -> None:
    """End the copy if the sweep has ended."""
    over = {"FINISHED", "CANCELED"}
    if view.state in over and not unfinished and read_sweep(api, destination, sweep).state not in over:
        set_sweep_state(api, sweep, "CANCELED" if view.state == "CANCELED" else "FINISHED")
