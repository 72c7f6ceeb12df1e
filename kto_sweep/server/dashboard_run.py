"""What the dashboard shows of single runs: all of one, the curves of some, a console, system metrics."""

import hashlib
import json
import sqlite3
from collections.abc import Sequence

from kto_sweep.server import dashboard_data
from kto_sweep.server.columns import ColumnCache
from kto_sweep.server.dashboard_data import Row, flat, run_row
from kto_sweep.server.run_writes import plain_config
from kto_sweep.server.store import files, lines, runs, sweeps
from kto_sweep.server.store.lines import Stream
from kto_sweep.server.store.projects import Project
from kto_sweep.server.store.runs import Run

LAST_LINES = 500
"""Console lines of a first answer."""
MAX_LINES = 5000
"""Console lines of one answer at most."""
MAX_LINE = 4000
SYSTEM_POINTS = 300
MAX_SYSTEM_METRICS = 60
MAX_VALUE = 20_000
"""Characters of one value of a configuration or summary on a run's own page at most."""


def facts(connection: sqlite3.Connection, columns: ColumnCache, project: Project, run: Run) -> Row:
    """All of a run but its curves and its console; `tag` changes with any of it."""
    sweep = sweeps.get(connection, run.sweep_id) if run.sweep_id is not None else None
    summary = lines.as_row(run.summary) or {}
    told: Row = {
        "run": {
            **run_row(run),
            "config": flat(plain_config(run.config), longest=MAX_VALUE),
            "summary": flat(
                {name: value for name, value in summary.items() if not name.startswith("_")},
                longest=MAX_VALUE,
            ),
            "program": run.program,
            "group": run.group_name,
            "job_type": run.job_type,
            "commit": run.commit_hash,
        },
        "sweep": {"name": sweep.name, "title": dashboard_data.title(sweep)} if sweep else None,
        "lines": lines.count(connection, run.id, Stream.HISTORY),
        "keys": columns.keys(connection, run.id, run.created_at),
        "alerts": [
            {
                "severity": alert.severity.lower(),
                "title": alert.title,
                "text": alert.text,
                "time": alert.created_at,
            }
            for alert in files.alerts(connection, run.id)
        ],
        "files": [
            {"id": file.id, "name": file.name, "size": file.size} for file in files.of_run(connection, run.id)
        ],
    }
    told["tag"] = hashlib.blake2b(json.dumps(told).encode(), digest_size=12).hexdigest()
    return told


def curves(
    connection: sqlite3.Connection,
    columns: ColumnCache,
    project: Project,
    names: Sequence[str],
    keys: Sequence[str],
    points: int,
) -> Row:
    """The curves of the named runs, as far as they are known: run, then key, then step, time and value."""
    told: Row = {}
    for name in names:
        run = runs.find(connection, project.id, name)
        if run is not None:
            told[name] = columns.curves(connection, run.id, run.created_at, list(keys), points)
    return {"curves": told}


def console(connection: sqlite3.Connection, run: Run, start: int | None) -> Row:
    """Console lines from number `start` on, or the last ones; `next` is where to go on."""
    found = (
        lines.last(connection, run.id, Stream.OUTPUT, LAST_LINES)
        if start is None
        else lines.after(connection, run.id, Stream.OUTPUT, start - 1, MAX_LINES)
    )
    return {
        "lines": [_console_line(line) for line in found],
        "next": found[-1].number + 1 if found else start or 0,
    }


def _console_line(line: lines.Line) -> Row:
    time, is_error, text = lines.console_parts(line.text)
    return {"number": line.number, "time": time, "error": is_error, "text": text[:MAX_LINE]}


def system(connection: sqlite3.Connection, columns: ColumnCache, run: Run) -> Row:
    """The run's system metrics, as the SDK samples them."""
    keys = columns.keys(connection, run.id, run.created_at, Stream.EVENTS)[:MAX_SYSTEM_METRICS]
    told = columns.curves(connection, run.id, run.created_at, keys, SYSTEM_POINTS, Stream.EVENTS)
    return {"curves": told}
