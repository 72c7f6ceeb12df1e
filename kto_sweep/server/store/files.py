"""Records of uploaded files and of alerts. The contents are stored on disk (see server/uploads.py)."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """One file of one run."""

    id: int
    run_id: int
    name: str
    size: int | None
    """Bytes; None until the upload is complete."""
    md5: str | None
    """Base64, as on W&B."""
    updated_at: float | None
    """Seconds since the epoch; None for a file that does not exist."""


@dataclass(frozen=True)
class AlertRecord:
    """One `run.alert()`."""

    severity: str
    title: str
    text: str
    created_at: float


def announce(connection: sqlite3.Connection, run_id: int, name: str, now: float) -> File:
    """Creates the record of a file that a client is about to upload."""
    connection.execute(
        "INSERT INTO file (run_id, name, updated_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (run_id, name, now),
    )
    file = find(connection, run_id, name)
    assert file is not None
    return file


def arrived(connection: sqlite3.Connection, file_id: int, size: int, md5: str, now: float) -> None:
    """Records that the upload is complete."""
    connection.execute(
        "UPDATE file SET size = ?, md5 = ?, updated_at = ? WHERE id = ?", (size, md5, now, file_id)
    )


def find(connection: sqlite3.Connection, run_id: int, name: str) -> File | None:
    """The run's file of that name."""
    row = connection.execute("SELECT * FROM file WHERE run_id = ? AND name = ?", (run_id, name)).fetchone()
    return File(*row) if row else None


def get(connection: sqlite3.Connection, file_id: int) -> File | None:
    """The file of row `file_id`."""
    row = connection.execute("SELECT * FROM file WHERE id = ?", (file_id,)).fetchone()
    return File(*row) if row else None


def of_run(connection: sqlite3.Connection, run_id: int) -> list[File]:
    """The run's completely uploaded files, by name."""
    rows = connection.execute(
        "SELECT * FROM file WHERE run_id = ? AND size IS NOT NULL ORDER BY name", (run_id,)
    )
    return [File(*row) for row in rows]


def total_bytes(connection: sqlite3.Connection, entity: str) -> int:
    """Bytes of all files of the entity's runs."""
    query = (
        "SELECT COALESCE(SUM(file.size), 0) FROM project JOIN run ON run.project_id = project.id"
        " JOIN file ON file.run_id = run.id WHERE project.entity = ?"
    )
    return int(connection.execute(query, (entity,)).fetchone()[0])


def delete(connection: sqlite3.Connection, file_ids: Sequence[int]) -> None:
    """Deletes the records of these files."""
    connection.executemany("DELETE FROM file WHERE id = ?", [(file_id,) for file_id in file_ids])


def add_alert(connection: sqlite3.Connection, run_id: int, alert: AlertRecord) -> None:
    """Stores an alert of the run."""
    connection.execute(
        "INSERT INTO alert (run_id, severity, title, text, created_at) VALUES (?, ?, ?, ?, ?)",
        (run_id, alert.severity, alert.title, alert.text, alert.created_at),
    )


def alerts(connection: sqlite3.Connection, run_id: int) -> list[AlertRecord]:
    """The run's alerts, oldest first."""
    rows = connection.execute(
        "SELECT severity, title, text, created_at FROM alert WHERE run_id = ? ORDER BY id", (run_id,)
    )
    return [AlertRecord(*row) for row in rows]
