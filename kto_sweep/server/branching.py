"""Runs that branch off another run's history: `fork_from` starts a new run with it, `resume_from` cuts it.

wandb puts the branch point into the run's configuration, below `_wandb`; that is the run's lineage.
"""

import json
import math
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kto_sweep.server import sweep_progress
from kto_sweep.server.errors import RefusedError
from kto_sweep.server.states import ENDED
from kto_sweep.server.store import lines, projects, runs
from kto_sweep.server.store.lines import Stream
from kto_sweep.server.store.runs import Run

_KEY = "branch_point"


@dataclass(frozen=True)
class BranchPoint:
    """The last step that a run has of another one, or of its own earlier history."""

    run_name: str
    step: int


def branch_point(config: str) -> BranchPoint | None:
    """The branch point in a run's configuration, if it has one."""
    if _KEY not in config:  # spares parsing almost every configuration
        return None
    internal = json.loads(config).get("_wandb")
    values = internal.get("value") if isinstance(internal, Mapping) else None
    point = values.get(_KEY) if isinstance(values, Mapping) else None
    if not isinstance(point, Mapping) or not isinstance(point.get("run_id"), str):
        return None
    return BranchPoint(point["run_id"], _step(point.get("step")))


def fork(connection: sqlite3.Connection, run: Run, point: BranchPoint) -> None:
    """Gives a new run the history, configuration and summary of another run of its project up to a step.

    Its own configuration takes precedence. Raises RefusedError for an unknown run or step.
    """
    parent = runs.find(connection, run.project_id, point.run_name)
    if parent is None:
        project = projects.get(connection, run.project_id)
        where = f"{project.entity}/{project.name}"
        raise RefusedError(f"cannot fork run {point.run_name}: project {where} has no such run")
    _check_step(connection, parent, point.step, "fork")
    lines.copy_history(connection, parent.id, run.id, point.step)
    config = {key: entry for key, entry in json.loads(parent.config).items() if key != "_wandb"}
    runs.update(
        connection,
        run.id,
        config=json.dumps({**config, **json.loads(run.config)}),
        summary=_summary_of_history(connection, run.id),
    )


def rewind(connection: sqlite3.Connection, fields: Mapping[str, Any]) -> Run:
    """Cuts an ended run's history after a step, for a process that continues from there; the changed run.

    Its console lines and system metrics are deleted, as on W&B: they have no steps. Raises RefusedError for
    an unknown run or step, a run that has not ended, and a metric other than the step.
    """
    entity, project, name = (fields.get(key) or "" for key in ("entity_name", "project_name", "run_name"))
    run = runs.find_by_path(
        connection, entity or projects.DEFAULT_ENTITY, project or projects.DEFAULT_PROJECT, name
    )
    if run is None:
        raise RefusedError(f"cannot rewind run {name}: project {entity}/{project} has no such run")
    if fields["metric_name"] != "_step":
        raise RefusedError(f"cannot rewind to {fields['metric_name']}: only to _step")
    if run.state not in ENDED:
        raise RefusedError(
            f"cannot rewind a run that is not in a terminal state: run {name} is {run.state.value}"
        )
    step = _step(fields["metric_value"])
    _check_step(connection, run, step, "rewind")
    lines.cut(connection, run.id, step)
    lines.clear(connection, run.id, Stream.EVENTS)
    lines.clear(connection, run.id, Stream.OUTPUT)
    for stream in Stream:
        runs.count_rewrite(connection, run.id, stream)
    runs.update(connection, run.id, summary=_summary_of_history(connection, run.id), overwrite_below=0)
    changed = runs.get(connection, run.id)
    assert changed is not None
    sweep_progress.recompute_run(connection, changed)
    return changed


def _step(value: object) -> int:
    """A step from a number of any kind; -1 for what is none."""
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else -1


def _check_step(connection: sqlite3.Connection, run: Run, step: int, verb: str) -> None:
    last = lines.last_step(connection, run.id)
    if not 0 <= step <= last:
        known = f"its last step is {last}" if last >= 0 else "it has logged nothing"
        raise RefusedError(f"cannot {verb} run {run.name} at step {step}: {known}")


def _summary_of_history(connection: sqlite3.Connection, run_id: int) -> str:
    """The last value of each key of the history, as JSON."""
    summary: dict[str, Any] = {}
    for text in lines.history(connection, run_id):
        summary |= lines.as_row(text) or {}
    return json.dumps(summary)
