"""JSON for the run page: metadata, curves, console lines, system metrics."""

import hashlib
import json
import shlex
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from kto_sweep.alerts import SUMMARY
from kto_sweep.provenance import Provenance
from kto_sweep.server import dashboard_artifacts
from kto_sweep.server.columns import ColumnCache
from kto_sweep.server.dashboard_data import Row, flat, run_row
from kto_sweep.server.run_writes import config_of, run_record
from kto_sweep.server.store import files, lines, runs
from kto_sweep.server.store.lines import Stream
from kto_sweep.server.store.projects import Project
from kto_sweep.server.store.runs import Run
from kto_sweep.sweep.view import SweepView
from kto_sweep.trial import trial_config

LAST_LINES = 500
"""Console lines of the first response."""
MAX_LINES = 5000
"""Maximum console lines of a response."""
MAX_LINE = 4000
SYSTEM_POINTS = 300
MAX_SYSTEM_METRICS = 60
MAX_VALUE = 20_000
"""Maximum characters of a configuration or summary value on the run page."""


def facts(
    connection: sqlite3.Connection,
    columns: ColumnCache,
    run: Run,
    view: SweepView | None,
    places: Mapping[str, Row],
) -> Row:
    """A run without its curves and console, with its place in its sweep; `tag` changes with any of it."""
    summary = lines.as_row(run.summary) or {}
    page: Row = {
        "run": {
            **run_row(run),
            **places.get(run.name, {}),
            "config": flat(trial_config(config_of(run.config)), longest=MAX_VALUE),
            "record": {title: flat(values, longest=MAX_VALUE) for title, values in _record(run)},
            "summary": flat(
                {
                    name: value
                    for name, value in summary.items()
                    if not name.startswith("_") and name != SUMMARY  # listed below
                },
                longest=MAX_VALUE,
            ),
            "program": run.program,
            "group": run.group_name,
            "job_type": run.job_type,
            "commit": run.commit_hash,
        },
        "sweep": {"name": view.ref.id, "title": view.name, "metric": view.metric} if view else None,
        "lines": lines.count(connection, run.id, Stream.HISTORY),
        "keys": columns.keys(connection, run.id, run.created_at),
        "alerts": [
            {
                "level": alert.severity.upper(),
                "title": alert.title,
                "text": alert.text,
                "time": alert.created_at,
            }
            for alert in files.alerts(connection, run.id)
        ],
        "files": [
            {"id": file.id, "name": file.name, "size": file.size} for file in files.of_run(connection, run.id)
        ],
        "artifacts": dashboard_artifacts.of_run(connection, run),
    }
    page["tag"] = hashlib.blake2b(json.dumps(page).encode(), digest_size=12).hexdigest()
    return page


def _record(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """The titles and values of the groups in the run's record, in the order of Provenance."""
    order = [field.name for field in fields(Provenance)]
    record = run_record(run.config)  # wandb sorts it by name
    for name in sorted(record, key=lambda name: order.index(name) if name in order else len(order)):
        value = record[name]
        if name == "command" and isinstance(value, list):
            value = {name: shlex.join(map(str, value))}
        yield name.capitalize(), value if isinstance(value, dict) else {name: value}


def curves(
    connection: sqlite3.Connection,
    columns: ColumnCache,
    project: Project,
    names: Sequence[str],
    keys: Sequence[str],
    points: int,
) -> Row:
    """Curves of the named runs: run -> key -> step, time, value. Unknown runs are left out."""
    curves_by_run: Row = {}
    for name in names:
        run = runs.find(connection, project.id, name)
        if run is not None:
            curves_by_run[name] = columns.curves(connection, run.id, run.created_at, list(keys), points)
    return {"curves": curves_by_run}


def console(connection: sqlite3.Connection, run: Run, start: int | None) -> Row:
    """Console lines from number `start`, else the last ones; `next` is the next number to request."""
    console_lines = (
        lines.last(connection, run.id, Stream.OUTPUT, LAST_LINES)
        if start is None
        else lines.after(connection, run.id, Stream.OUTPUT, start - 1, MAX_LINES)
    )
    return {
        "lines": [_console_line(line) for line in console_lines],
        "next": console_lines[-1].number + 1 if console_lines else start or 0,
    }


def _console_line(line: lines.StreamLine) -> Row:
    time, is_error, text = lines.console_parts(line.text)
    return {"number": line.number, "time": time, "error": is_error, "text": text[:MAX_LINE]}


def system(connection: sqlite3.Connection, columns: ColumnCache, run: Run) -> Row:
    """Curves of the run's system metrics, as sampled by the SDK."""
    keys = columns.keys(connection, run.id, run.created_at, Stream.EVENTS)[:MAX_SYSTEM_METRICS]
    curves = columns.curves(connection, run.id, run.created_at, keys, SYSTEM_POINTS, Stream.EVENTS)
    return {"curves": curves}
