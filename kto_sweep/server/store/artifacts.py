"""Artifacts: reads and writes of their records, and lists for a run's page.

The collections and aliases of artifacts are in artifact_collections, their files in artifact_contents.
"""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from kto_sweep.server.store import artifact_collections, runs
from kto_sweep.server.store.runs import Run


class ArtifactState(StrEnum):
    """Whether an artifact can be used; the values are W&B's."""

    PENDING = "PENDING"
    """Its files are being uploaded; it has no version yet."""
    COMMITTED = "COMMITTED"


class Role(StrEnum):
    """What a run did with an artifact."""

    LOGGED = "logged"
    USED = "used"


@dataclass(frozen=True)
class Artifact:
    """A row of the artifact table. Times are in seconds since the epoch."""

    id: int
    collection_id: int
    """Its sequence."""
    run_id: int | None
    """The run that logged it first."""
    state: ArtifactState
    version: int | None
    """Number in its sequence; None until it is committed."""
    digest: str
    distributed_id: str | None
    """Shared by the processes that log parts of it."""
    description: str | None
    metadata: str | None
    """JSON."""
    tags: tuple[str, ...]
    requested_aliases: tuple[str, ...]
    """Aliases that it gets when it is committed."""
    ttl_seconds: int | None
    """Seconds after its creation when it is deleted; None: never."""
    ttl_is_inherited: bool
    history_step: int | None
    manifest_id: int | None
    """Its complete manifest; None until it is committed."""
    size: int
    """Bytes, references included."""
    file_count: int
    created_at: float
    updated_at: float


@dataclass(frozen=True)
class ArtifactSummary:
    """One artifact of a run, as a page lists it."""

    id: int
    role: Role
    name: str
    """Of its collection."""
    type: str
    version: int
    aliases: tuple[str, ...]
    size: int
    """Bytes."""
    file_count: int
    created_at: float
    """Seconds since the epoch."""


_COLUMNS = ", ".join(f"artifact.{field.name}" for field in fields(Artifact))


def _record(row: sqlite3.Row) -> Artifact:
    values = dict(row)
    values["state"] = ArtifactState(values["state"])
    values["tags"] = tuple(json.loads(values["tags"]))
    values["requested_aliases"] = tuple(json.loads(values["requested_aliases"]))
    values["ttl_is_inherited"] = bool(values["ttl_is_inherited"])
    return Artifact(**values)


def get(connection: sqlite3.Connection, artifact_id: int) -> Artifact | None:
    """The artifact of row `artifact_id`."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM artifact WHERE id = ?", (artifact_id,)).fetchone()
    return _record(row) if row else None


def find_by_client(connection: sqlite3.Connection, client_id: str) -> Artifact | None:
    """The artifact that a client knows by this id of its own."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM artifact_client JOIN artifact ON artifact.id = artifact_client.artifact_id"
        " WHERE client_id = ?",
        (client_id,),
    ).fetchone()
    return _record(row) if row else None


def add_client(connection: sqlite3.Connection, artifact_id: int, client_id: str) -> None:
    """Records that a client knows the artifact by this id."""
    connection.execute("INSERT OR REPLACE INTO artifact_client VALUES (?, ?)", (client_id, artifact_id))


def find_by_digest(connection: sqlite3.Connection, collection_id: int, digest: str) -> Artifact | None:
    """The sequence's artifact with this content: a committed one first, the newest first."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM artifact WHERE collection_id = ? AND digest = ?"
        " AND (state = 'COMMITTED' OR distributed_id IS NULL)"
        " ORDER BY state, id DESC",  # COMMITTED comes before PENDING
        (collection_id, digest),
    ).fetchone()
    return _record(row) if row else None


def find_distributed(
    connection: sqlite3.Connection, collection_id: int, distributed_id: str
) -> Artifact | None:
    """The sequence's uncommitted artifact that several processes log together."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM artifact WHERE collection_id = ? AND distributed_id = ?"
        " AND state = 'PENDING' ORDER BY id DESC",
        (collection_id, distributed_id),
    ).fetchone()
    return _record(row) if row else None


def insert(connection: sqlite3.Connection, collection_id: int, now: float, **values: Any) -> Artifact:
    """Creates an artifact without a version."""
    values |= {"collection_id": collection_id, "state": ArtifactState.PENDING}
    columns = _as_columns(values | {"created_at": now, "updated_at": now})
    cursor = connection.execute(
        f"INSERT INTO artifact ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
        tuple(columns.values()),
    )
    artifact = get(connection, int(cursor.lastrowid or 0))
    assert artifact is not None
    return artifact


def update(connection: sqlite3.Connection, artifact_id: int, now: float, **values: Any) -> None:
    """Sets the given columns."""
    columns = _as_columns(values | {"updated_at": now})
    assignments = ", ".join(f"{column} = ?" for column in columns)
    connection.execute(f"UPDATE artifact SET {assignments} WHERE id = ?", (*columns.values(), artifact_id))


def _as_columns(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: json.dumps(value) if name in ("tags", "requested_aliases") else value
        for name, value in values.items()
    }


def delete(connection: sqlite3.Connection, artifact_id: int) -> None:
    """Deletes the artifact in all its collections; maintenance deletes files that no other artifact has."""
    connection.execute("DELETE FROM artifact WHERE id = ?", (artifact_id,))


def add_run(connection: sqlite3.Connection, artifact_id: int, run_id: int, role: Role) -> None:
    """Records that the run logged or used the artifact."""
    connection.execute(
        "INSERT OR IGNORE INTO artifact_run (run_id, artifact_id, role) VALUES (?, ?, ?)",
        (run_id, artifact_id, role),
    )


def of_run(connection: sqlite3.Connection, run_id: int, role: Role) -> list[Artifact]:
    """The committed artifacts that the run logged or used, oldest first."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM artifact_run JOIN artifact ON artifact.id = artifact_run.artifact_id"
        " WHERE artifact_run.run_id = ? AND role = ? AND state = 'COMMITTED' ORDER BY artifact.id",
        (run_id, role),
    )
    return [_record(row) for row in rows]


def count_of_run(connection: sqlite3.Connection, run_id: int) -> int:
    """How many committed artifacts the run logged and used."""
    query = (
        "SELECT COUNT(*) FROM artifact_run JOIN artifact ON artifact.id = artifact_run.artifact_id"
        " WHERE artifact_run.run_id = ? AND state = 'COMMITTED'"
    )
    return int(connection.execute(query, (run_id,)).fetchone()[0])


def summaries_of_run(connection: sqlite3.Connection, run_id: int, most: int) -> list[ArtifactSummary]:
    """The last `most` committed artifacts that the run logged or used, the newest first."""
    rows = connection.execute(
        "SELECT artifact_id, role FROM artifact_run JOIN artifact ON artifact.id = artifact_run.artifact_id"
        " WHERE artifact_run.run_id = ? AND state = 'COMMITTED' ORDER BY artifact_id DESC, role LIMIT ?",
        (run_id, most),
    ).fetchall()
    return [
        _summary(connection, artifact, Role(role))
        for artifact_id, role in rows
        if (artifact := get(connection, artifact_id)) is not None
    ]


def _summary(connection: sqlite3.Connection, artifact: Artifact, role: Role) -> ArtifactSummary:
    collection = artifact_collections.get(connection, artifact.collection_id)
    member = artifact_collections.member_of(connection, artifact.collection_id, artifact.id)
    assert collection is not None
    assert member is not None
    aliases = artifact_collections.aliases_of_member(connection, member.id)
    return ArtifactSummary(
        artifact.id,
        role,
        collection.name,
        collection.type,
        member.version,
        tuple(alias.alias for alias in aliases),
        artifact.size,
        artifact.file_count,
        artifact.created_at,
    )


def used_by(connection: sqlite3.Connection, artifact_id: int) -> list[Run]:
    """The runs that used the artifact, oldest first."""
    rows = connection.execute(
        "SELECT run_id FROM artifact_run WHERE artifact_id = ? AND role = ? ORDER BY run_id",
        (artifact_id, Role.USED),
    )
    return [run for row in rows.fetchall() if (run := runs.get(connection, row[0])) is not None]


def logged_by_run(connection: sqlite3.Connection, run_id: int) -> list[int]:
    """The artifacts, committed or not, that the run created."""
    return [row[0] for row in connection.execute("SELECT id FROM artifact WHERE run_id = ?", (run_id,))]


def expired(connection: sqlite3.Connection, now: float) -> list[int]:
    """The committed artifacts whose time to live has passed; those that are linked elsewhere are kept."""
    rows = connection.execute(
        "SELECT id FROM artifact WHERE ttl_seconds IS NOT NULL AND state = 'COMMITTED'"
        " AND created_at + ttl_seconds <= ?"
        " AND (SELECT COUNT(*) FROM artifact_member WHERE artifact_id = artifact.id) = 1",
        (now,),
    )
    return [row[0] for row in rows]


def abandoned(connection: sqlite3.Connection, before: float) -> list[int]:
    """The uncommitted artifacts whose last request came before that time."""
    rows = connection.execute("SELECT id FROM artifact WHERE state = 'PENDING' AND updated_at < ?", (before,))
    return [row[0] for row in rows]


def touch(connection: sqlite3.Connection, artifact_ids: Sequence[int], now: float) -> None:
    """Records that uncommitted artifacts are still being uploaded."""
    connection.executemany(
        "UPDATE artifact SET updated_at = ? WHERE id = ? AND state = 'PENDING'",
        [(now, artifact_id) for artifact_id in artifact_ids],
    )
