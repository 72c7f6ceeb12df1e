"""Migrates a database file to the newest schema, after copying the old file.

The schema version is in `PRAGMA user_version`. Never change a released step; add a new one.
"""

import sqlite3
from pathlib import Path

from kto_sweep.errors import ServerError
from kto_sweep.server.store import artifact_tables, login_links
from kto_sweep.server.store.database import connect

FIRST = """
CREATE TABLE project (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    entity TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    created_at REAL NOT NULL,
    UNIQUE (entity, name)
);
CREATE TABLE sweep (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id INTEGER NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    display_name TEXT,
    description TEXT,
    controller TEXT,
    scheduler TEXT,
    controller_run_name TEXT,
    prior_runs TEXT,
    exhausted INTEGER NOT NULL DEFAULT 0,
    grid_cursor INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    heartbeat_at REAL,
    config TEXT NOT NULL,
    UNIQUE (project_id, name)
);
CREATE TABLE agent (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    sweep_id INTEGER NOT NULL REFERENCES sweep (id) ON DELETE CASCADE,
    name TEXT NOT NULL UNIQUE,
    host TEXT NOT NULL,
    created_at REAL NOT NULL,
    heartbeat_at REAL NOT NULL
);
CREATE INDEX agent_of_sweep ON agent (sweep_id);
-- The long texts come last, so that scans over states and numbers do not read them.
CREATE TABLE run (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id INTEGER NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    sweep_id INTEGER REFERENCES sweep (id) ON DELETE SET NULL,
    agent_id INTEGER REFERENCES agent (id) ON DELETE SET NULL,
    state TEXT NOT NULL,
    exitcode INTEGER,
    stop_requested INTEGER NOT NULL DEFAULT 0,
    picked_up INTEGER NOT NULL DEFAULT 0,
    handed_out INTEGER NOT NULL DEFAULT 0,
    assigned_at REAL,
    created_at REAL NOT NULL,
    heartbeat_at REAL NOT NULL,
    metric_count INTEGER NOT NULL DEFAULT 0,
    metric_low REAL,
    metric_high REAL,
    metric_last REAL,
    objective TEXT,
    objective_value REAL,
    display_name TEXT NOT NULL,
    description TEXT,
    notes TEXT,
    group_name TEXT,
    job_type TEXT,
    host TEXT,
    program TEXT,
    repo TEXT,
    commit_hash TEXT,
    tags TEXT NOT NULL DEFAULT '[]',
    restart TEXT NOT NULL DEFAULT '{}',
    cell_key TEXT,
    suggested TEXT,
    config TEXT NOT NULL DEFAULT '{}',
    summary TEXT NOT NULL DEFAULT '{}',
    -- The same as strict JSON, only where config or summary hold NaN or Infinity: SQLite's functions need it.
    strict_config TEXT,
    strict_summary TEXT,
    UNIQUE (project_id, name)
);
CREATE INDEX run_of_project ON run (project_id);
CREATE INDEX run_of_sweep ON run (sweep_id);
CREATE INDEX run_of_sweep_in_state ON run (sweep_id, state);
CREATE INDEX run_chosen_by_search ON run (sweep_id) WHERE suggested IS NOT NULL;
CREATE INDEX run_cell ON run (sweep_id, cell_key);
CREATE INDEX run_in_state ON run (state);
-- One row per line that a client sent; (run, stream, number) makes a repeated request harmless.
CREATE TABLE line (
    run_id INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    stream TEXT NOT NULL,
    number INTEGER NOT NULL,
    step INTEGER,
    text TEXT NOT NULL,
    PRIMARY KEY (run_id, stream, number)
) WITHOUT ROWID;
CREATE INDEX line_by_step ON line (run_id, stream, step);
-- The finite values of the sweep's metric, in order: what early termination and search read.
CREATE TABLE metric_value (
    run_id INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    ordinal INTEGER NOT NULL,
    line INTEGER NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (run_id, ordinal)
) WITHOUT ROWID;
CREATE TABLE file (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    size INTEGER,
    md5 TEXT,
    updated_at REAL NOT NULL,
    UNIQUE (run_id, name)
);
CREATE TABLE alert (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    severity TEXT NOT NULL,
    title TEXT NOT NULL,
    text TEXT NOT NULL,
    created_at REAL NOT NULL
);
CREATE INDEX alert_of_run ON alert (run_id);
"""

SECOND = """
CREATE TABLE prior_run (
    sweep_id INTEGER NOT NULL REFERENCES sweep (id) ON DELETE CASCADE,
    run_id INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    PRIMARY KEY (sweep_id, run_id)
) WITHOUT ROWID;
CREATE INDEX prior_run_of ON prior_run (run_id);
"""

THIRD = """
ALTER TABLE run ADD COLUMN rung INTEGER NOT NULL DEFAULT 0;
ALTER TABLE run ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;
CREATE INDEX run_paused ON run (sweep_id) WHERE paused;
"""

WRITERS = """
ALTER TABLE run DROP COLUMN restart;
ALTER TABLE run ADD COLUMN overwrite_below INTEGER NOT NULL DEFAULT 0;
ALTER TABLE run ADD COLUMN history_rewrites INTEGER NOT NULL DEFAULT 0;
ALTER TABLE run ADD COLUMN events_rewrites INTEGER NOT NULL DEFAULT 0;
-- Of a run that several processes write: the process, and the line's number in what that process sends.
ALTER TABLE line ADD COLUMN writer TEXT;
ALTER TABLE line ADD COLUMN writer_line INTEGER;
CREATE UNIQUE INDEX line_of_writer ON line (run_id, stream, writer, writer_line) WHERE writer IS NOT NULL;
-- By name and not by run: clients cache the files by name, also when the run is deleted.
CREATE TABLE history_export (
    project_id INTEGER NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    run_name TEXT NOT NULL,
    run_id INTEGER NOT NULL,
    number INTEGER NOT NULL,
    start_line INTEGER NOT NULL,
    end_line INTEGER NOT NULL,
    rewrites INTEGER NOT NULL,
    PRIMARY KEY (project_id, run_name, number)
) WITHOUT ROWID;
"""

SHOWN_COLUMNS = (
    "sweep_id, state, exitcode, stop_requested, assigned_at, heartbeat_at, objective, objective_value,"
    " display_name, notes, host, tags, paused, config, summary"
)
CHANGES = f"""
-- The number of the last change to what the page and commands show of a run: later changes have higher ones.
ALTER TABLE run ADD COLUMN change INTEGER NOT NULL DEFAULT 0;
UPDATE run SET change = id;
CREATE INDEX run_change ON run (change);
CREATE INDEX run_change_of_sweep ON run (sweep_id, change);
CREATE TRIGGER run_inserted AFTER INSERT ON run BEGIN
    UPDATE run SET change = (SELECT MAX(change) + 1 FROM run) WHERE id = NEW.id;
END;
CREATE TABLE history_extract (
    run_id INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    rewrites INTEGER NOT NULL,
    extract TEXT NOT NULL,
    PRIMARY KEY (run_id, number)
) WITHOUT ROWID;
CREATE TRIGGER run_changed AFTER UPDATE OF {SHOWN_COLUMNS} ON run BEGIN
    UPDATE run SET change = (SELECT MAX(change) + 1 FROM run) WHERE id = NEW.id;
END;
"""

STEPS = (FIRST, SECOND, THIRD, WRITERS, artifact_tables.TABLES, login_links.TABLES, CHANGES)


def migrate(path: Path) -> None:
    """Creates or migrates the database at `path`; the folder must exist.

    Before it changes an existing file it saves a copy as `<file>.version-<n>`.
    Raises ServerError when the file is damaged, is not a database, or was written by a newer kto-sweep.
    """
    try:
        connection = connect(path)
    except sqlite3.DatabaseError as problem:
        raise _damaged(path, str(problem)) from problem
    try:
        _check_health(connection, path)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(STEPS):
            raise ServerError(
                f"{path} was written by a newer kto-sweep (schema {version}; this one supports {len(STEPS)})",
                hint="upgrade kto-sweep, or set KTO_SWEEP_HOME to another folder",
            )
        if 0 < version < len(STEPS):
            _copy(connection, path.with_name(f"{path.name}.version-{version}"))
        for number in range(version, len(STEPS)):
            _run_step(connection, path, number)
    finally:
        connection.close()


def _run_step(connection: sqlite3.Connection, path: Path, number: int) -> None:
    """Migrates schema `number` to `number` + 1 in one transaction."""
    script = f"BEGIN IMMEDIATE;{STEPS[number]};PRAGMA user_version = {number + 1};COMMIT;"
    try:
        connection.executescript(script)
    except sqlite3.Error as problem:
        raise ServerError(
            f"cannot migrate {path} from schema {number} to {number + 1}: {problem}",
            hint="the file is unchanged; free disk space if the disk is full, then start again",
        ) from problem


def _check_health(connection: sqlite3.Connection, path: Path) -> None:
    try:
        result = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as problem:
        raise _damaged(path, str(problem)) from problem
    if result != "ok":
        raise _damaged(path, result)


def _damaged(path: Path, detail: str) -> ServerError:
    return ServerError(
        f"the database {path} is damaged: {detail}",
        hint=f"the file is unchanged; to start with an empty database: mv {path} {path}.damaged; "
        f"to recover the data: sqlite3 {path} .recover",
    )


def _copy(connection: sqlite3.Connection, target: Path) -> None:
    copy = sqlite3.connect(target)
    with copy:
        connection.backup(copy)
    copy.close()
