"""Collections of artifacts, their members and aliases.

A sequence holds the versions that runs log under its name. A portfolio holds links to versions of sequences.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kto_sweep.server.store.filters import Columns, Order, Where, select

_VERSIONS = "artifact_member JOIN artifact ON artifact.id = artifact_member.artifact_id"
LATEST = "latest"
"""Alias of the newest version of every collection."""


class CollectionKind(StrEnum):
    """What a collection holds."""

    SEQUENCE = "SEQUENCE"
    PORTFOLIO = "PORTFOLIO"


@dataclass(frozen=True)
class Collection:
    """A row of the artifact_collection table. Times are in seconds since the epoch."""

    id: int
    project_id: int
    kind: CollectionKind
    name: str
    type: str
    description: str | None
    tags: tuple[str, ...]
    next_version: int
    created_at: float
    updated_at: float


COLUMNS = Columns(
    "artifact collections",
    "artifact_collection.id",
    {name: f"artifact_collection.{name}" for name in ("name", "type", "description", "kind")},
    {
        "created_at": "artifact_collection.created_at",
        "createdAt": "artifact_collection.created_at",
        "updated_at": "artifact_collection.updated_at",
        "updatedAt": "artifact_collection.updated_at",
    },
    "artifact_collection.tags",
    "name, type, tags or created_at",
)
VERSION_COLUMNS = Columns(
    "versions of an artifact",
    "artifact_member.version",
    {
        "version": "'v' || artifact_member.version",
        "version_index": "artifact_member.version",
        "versionIndex": "artifact_member.version",
        **{name: f"artifact.{name}" for name in ("state", "digest", "description", "size")},
    },
    {
        "created_at": "artifact.created_at",
        "createdAt": "artifact.created_at",
        "updated_at": "artifact.updated_at",
        "updatedAt": "artifact.updated_at",
    },
    "artifact.tags",
    "state, version, digest, tags, metadata.NAME or created_at",
    # SQLite's functions need strict JSON, but a client's metadata may hold NaN.
    documents={"metadata": "CASE WHEN json_valid(artifact.metadata) THEN artifact.metadata END"},
)
"""What filters and orders of collections, and of the versions in one, may name."""


@dataclass(frozen=True)
class ArtifactType:
    """The collections of a project that have one type."""

    id: int
    """Row of its oldest collection."""
    project_id: int
    name: str
    created_at: float


@dataclass(frozen=True)
class Member:
    """An artifact in a collection."""

    id: int
    collection_id: int
    artifact_id: int
    version: int
    created_at: float


@dataclass(frozen=True)
class Alias:
    """A name of one member of a collection."""

    id: int
    collection_id: int
    member_id: int
    alias: str


def _collection(row: sqlite3.Row) -> Collection:
    values = dict(row)
    values["kind"] = CollectionKind(values["kind"])
    values["tags"] = tuple(json.loads(values["tags"]))
    return Collection(**values)


def get(connection: sqlite3.Connection, collection_id: int) -> Collection | None:
    """The collection of row `collection_id`."""
    row = connection.execute("SELECT * FROM artifact_collection WHERE id = ?", (collection_id,)).fetchone()
    return _collection(row) if row else None


def find(
    connection: sqlite3.Connection, project_id: int, name: str, type_name: str | None = None
) -> Collection | None:
    """The project's collection of that name, and of that type if one is given."""
    row = connection.execute(
        "SELECT * FROM artifact_collection WHERE project_id = ?1 AND name = ?2 AND (?3 IS NULL OR type = ?3)",
        (project_id, name, type_name),
    ).fetchone()
    return _collection(row) if row else None


def page(
    connection: sqlite3.Connection, where: Where, order: Order | None, first: int, offset: int
) -> list[Collection]:
    """Up to `first` matching collections from `offset` on, the newest first without an order."""
    ordering = f"{order.sql} {order.direction}" if order else "id DESC"
    rows = select(
        connection,
        f"SELECT * FROM artifact_collection WHERE {where.sql} ORDER BY {ordering} LIMIT ? OFFSET ?",
        (*where.parameters, *(order.parameters if order else ()), first, offset),
    )
    return [_collection(row) for row in rows]


def count(connection: sqlite3.Connection, where: Where) -> int:
    """How many collections match."""
    query = f"SELECT COUNT(*) FROM artifact_collection WHERE {where.sql}"
    return int(select(connection, query, where.parameters)[0][0])


def ensure(
    connection: sqlite3.Connection,
    project_id: int,
    name: str,
    kind: CollectionKind,
    type_name: str,
    now: float,
) -> Collection:
    """The project's collection of that name, created with this kind and type if it is missing."""
    connection.execute(
        "INSERT INTO artifact_collection (project_id, kind, name, type, created_at, updated_at)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (project_id, kind, name, type_name, now, now),
    )
    collection = find(connection, project_id, name)
    assert collection is not None
    return collection


def update(
    connection: sqlite3.Connection, collection: Collection, now: float, **values: str | Sequence[str] | None
) -> None:
    """Sets the given columns: name, type, description, tags."""
    columns = {name: json.dumps(value) if name == "tags" else value for name, value in values.items()} | {
        "updated_at": now
    }
    assignments = ", ".join(f"{column} = ?" for column in columns)
    connection.execute(
        f"UPDATE artifact_collection SET {assignments} WHERE id = ?", (*columns.values(), collection.id)
    )


def delete(connection: sqlite3.Connection, collection_id: int) -> None:
    """Deletes the collection; a sequence with its artifacts, wherever they are linked."""
    connection.execute("DELETE FROM artifact_collection WHERE id = ?", (collection_id,))


def types(connection: sqlite3.Connection, project_id: int) -> list[ArtifactType]:
    """The types of the project's collections, oldest first."""
    rows = connection.execute(
        "SELECT MIN(id), project_id, type, MIN(created_at) FROM artifact_collection WHERE project_id = ?"
        " GROUP BY type ORDER BY 1",
        (project_id,),
    )
    return [ArtifactType(*row) for row in rows]


def find_type(connection: sqlite3.Connection, project_id: int, name: str) -> ArtifactType | None:
    """The project's type of that name."""
    row = connection.execute(
        "SELECT id, project_id, type, created_at FROM artifact_collection WHERE project_id = ? AND type = ?"
        " ORDER BY id LIMIT 1",
        (project_id, name),
    ).fetchone()
    return ArtifactType(*row) if row else None


def add_member(connection: sqlite3.Connection, collection_id: int, artifact_id: int, now: float) -> Member:
    """Makes the artifact the collection's latest version, unless it is a member already."""
    member = member_of(connection, collection_id, artifact_id)
    if member is None:
        [version] = connection.execute(
            "UPDATE artifact_collection SET next_version = next_version + 1, updated_at = ? WHERE id = ?"
            " RETURNING next_version - 1",
            (now, collection_id),
        ).fetchone()
        connection.execute(
            "INSERT INTO artifact_member (collection_id, artifact_id, version, created_at)"
            " VALUES (?, ?, ?, ?)",
            (collection_id, artifact_id, version, now),
        )
        member = member_of(connection, collection_id, artifact_id)
        assert member is not None
        set_aliases(connection, member, [LATEST])
    return member


def member_of(connection: sqlite3.Connection, collection_id: int, artifact_id: int) -> Member | None:
    """The artifact as a member of the collection."""
    row = connection.execute(
        "SELECT * FROM artifact_member WHERE collection_id = ? AND artifact_id = ?",
        (collection_id, artifact_id),
    ).fetchone()
    return Member(*row) if row else None


def find_member(connection: sqlite3.Connection, collection_id: int, alias: str) -> Member | None:
    """The collection's member with that alias, or version such as `v3`.

    Without the alias `latest`, which may have been deleted, the newest version is the latest.
    """
    if alias[:1] == "v" and alias[1:].isdecimal() and len(alias) < 18:
        query = "SELECT * FROM artifact_member WHERE collection_id = ? AND version = ?"
        row = connection.execute(query, (collection_id, int(alias[1:]))).fetchone()
        return Member(*row) if row else None
    query = (
        "SELECT artifact_member.* FROM artifact_alias"
        " JOIN artifact_member ON artifact_member.id = artifact_alias.member_id"
        " WHERE artifact_alias.collection_id = ? AND artifact_alias.alias = ?"
    )
    row = connection.execute(query, (collection_id, alias)).fetchone()
    if row is None and alias == LATEST:
        return newest_member(connection, collection_id)
    return Member(*row) if row else None


def newest_member(connection: sqlite3.Connection, collection_id: int) -> Member | None:
    """The collection's newest version."""
    query = "SELECT * FROM artifact_member WHERE collection_id = ? ORDER BY version DESC LIMIT 1"
    row = connection.execute(query, (collection_id,)).fetchone()
    return Member(*row) if row else None


def version_page(
    connection: sqlite3.Connection, where: Where, order: Order | None, first: int, offset: int
) -> list[Member]:
    """Up to `first` matching members from `offset` on, the newest first without an order."""
    ordering = f"{order.sql} {order.direction}" if order else "artifact_member.version DESC"
    rows = select(
        connection,
        f"SELECT artifact_member.* FROM {_VERSIONS} WHERE {where.sql} ORDER BY {ordering} LIMIT ? OFFSET ?",
        (*where.parameters, *(order.parameters if order else ()), first, offset),
    )
    return [Member(*row) for row in rows]


def version_count(connection: sqlite3.Connection, where: Where) -> int:
    """How many members match."""
    query = f"SELECT COUNT(*) FROM {_VERSIONS} WHERE {where.sql}"
    return int(select(connection, query, where.parameters)[0][0])


def memberships(connection: sqlite3.Connection, artifact_id: int) -> list[Member]:
    """The artifact as a member of each of its collections; its own sequence comes first."""
    rows = connection.execute(
        "SELECT * FROM artifact_member WHERE artifact_id = ? ORDER BY id", (artifact_id,)
    )
    return [Member(*row) for row in rows]


def remove_member(connection: sqlite3.Connection, member_id: int) -> None:
    """Removes the member with its aliases."""
    connection.execute("DELETE FROM artifact_member WHERE id = ?", (member_id,))


def set_aliases(connection: sqlite3.Connection, member: Member, aliases: Iterable[str]) -> None:
    """Gives the member these aliases; another member of the collection loses them."""
    connection.executemany(
        "INSERT INTO artifact_alias (collection_id, member_id, alias) VALUES (?, ?, ?)"
        " ON CONFLICT (collection_id, alias) DO UPDATE SET member_id = excluded.member_id",
        [(member.collection_id, member.id, alias) for alias in aliases],
    )


def delete_aliases(connection: sqlite3.Connection, member: Member, aliases: Iterable[str]) -> None:
    """Takes these aliases from the member."""
    connection.executemany(
        "DELETE FROM artifact_alias WHERE member_id = ? AND alias = ?",
        [(member.id, alias) for alias in aliases],
    )


def aliases_of_member(connection: sqlite3.Connection, member_id: int) -> list[Alias]:
    """The member's aliases, without its version."""
    rows = connection.execute("SELECT * FROM artifact_alias WHERE member_id = ? ORDER BY id", (member_id,))
    return [Alias(*row) for row in rows]


def aliases_of_collection(connection: sqlite3.Connection, collection_id: int) -> list[Alias]:
    """The aliases of all members, without versions."""
    rows = connection.execute(
        "SELECT * FROM artifact_alias WHERE collection_id = ? ORDER BY id", (collection_id,)
    )
    return [Alias(*row) for row in rows]
