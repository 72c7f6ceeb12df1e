"""Records of manifests and of file contents: what is on disk, what is being uploaded, what is unused."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kto_sweep.server.artifact_manifest import Entry


class ManifestKind(StrEnum):
    """How a manifest becomes that of its artifact when it is committed."""

    FULL = "FULL"
    INCREMENTAL = "INCREMENTAL"
    """Adds its entries to those of the base artifact."""
    PATCH = "PATCH"
    """One of several processes' parts."""


@dataclass(frozen=True)
class ManifestRecord:
    """A row of the artifact_manifest table."""

    id: int
    artifact_id: int
    kind: ManifestKind
    base_artifact_id: int | None
    digest: str
    """MD5 of the manifest in base64, as announced; empty: not announced."""
    head: str | None
    """The manifest without its contents, as JSON; None until it is uploaded."""


@dataclass(frozen=True)
class StoredContent:
    """A file content on disk."""

    digest: str
    size: int
    """Bytes."""
    checksums: bytes
    """See server/received_file.py."""
    is_damaged: bool


@dataclass(frozen=True)
class Upload:
    """An upload in parts."""

    id: int
    artifact_id: int
    digest: str
    """Of the whole content."""
    part_digests: tuple[str, ...]
    """MD5 of each part in base64."""
    part_size: int | None
    """Bytes of each part but the last; None until one of them arrives."""


def add_manifest(
    connection: sqlite3.Connection, artifact_id: int, kind: ManifestKind, base: int | None, digest: str
) -> ManifestRecord:
    """Creates the record of a manifest that a client is about to upload."""
    cursor = connection.execute(
        "INSERT INTO artifact_manifest (artifact_id, kind, base_artifact_id, digest) VALUES (?, ?, ?, ?)",
        (artifact_id, kind, base, digest),
    )
    manifest = get_manifest(connection, int(cursor.lastrowid or 0))
    assert manifest is not None
    return manifest


def announce_manifest(
    connection: sqlite3.Connection, manifest_id: int, digest: str, base: int | None
) -> None:
    """Sets the digest, and the base if one is given, of a manifest that a client is about to upload."""
    connection.execute(
        "UPDATE artifact_manifest SET digest = ?, base_artifact_id = COALESCE(?, base_artifact_id)"
        " WHERE id = ?",
        (digest, base, manifest_id),
    )


def get_manifest(connection: sqlite3.Connection, manifest_id: int) -> ManifestRecord | None:
    """The manifest of row `manifest_id`."""
    row = connection.execute("SELECT * FROM artifact_manifest WHERE id = ?", (manifest_id,)).fetchone()
    return _manifest(row) if row else None


def manifests(connection: sqlite3.Connection, artifact_id: int) -> list[ManifestRecord]:
    """The artifact's uploaded manifests, oldest first."""
    rows = connection.execute(
        "SELECT * FROM artifact_manifest WHERE artifact_id = ? AND head IS NOT NULL ORDER BY id",
        (artifact_id,),
    )
    return [_manifest(row) for row in rows]


def _manifest(row: sqlite3.Row) -> ManifestRecord:
    values = dict(row)
    values["kind"] = ManifestKind(values["kind"])
    return ManifestRecord(**values)


def fill_manifest(
    connection: sqlite3.Connection, manifest_id: int, head: str, entries: Iterable[Entry]
) -> None:
    """Stores a manifest's contents, in place of earlier ones."""
    connection.execute("DELETE FROM artifact_entry WHERE manifest_id = ?", (manifest_id,))
    connection.executemany(
        "INSERT INTO artifact_entry (manifest_id, path, digest, size, ref, other) VALUES (?, ?, ?, ?, ?, ?)",
        ((manifest_id, entry.path, entry.digest, entry.size, entry.ref, entry.other) for entry in entries),
    )
    connection.execute("UPDATE artifact_manifest SET head = ? WHERE id = ?", (head, manifest_id))


def copy_entries(connection: sqlite3.Connection, source: int, target: int) -> None:
    """Adds one manifest's entries to another; a path that both have gets the added entry."""
    connection.execute(
        "INSERT OR REPLACE INTO artifact_entry (manifest_id, path, digest, size, ref, other)"
        " SELECT ?, path, digest, size, ref, other FROM artifact_entry WHERE manifest_id = ?",
        (target, source),
    )


def delete_other_manifests(connection: sqlite3.Connection, artifact_id: int, kept: int) -> None:
    """Deletes the artifact's manifests but one."""
    connection.execute("DELETE FROM artifact_manifest WHERE artifact_id = ? AND id <> ?", (artifact_id, kept))


_ENTRY = "path, artifact_entry.digest, artifact_entry.size, ref, other"


def entries(connection: sqlite3.Connection, manifest_id: int) -> Iterator[Entry]:
    """The manifest's entries by path, read as they are used."""
    rows = connection.execute(
        f"SELECT {_ENTRY} FROM artifact_entry WHERE manifest_id = ? ORDER BY path", (manifest_id,)
    )
    return (Entry(*row) for row in rows)


def entry_page(
    connection: sqlite3.Connection, manifest_id: int, first: int, offset: int, names: Sequence[str] = ()
) -> list[Entry]:
    """Up to `first` entries from `offset` on, by path; only those with these paths when any are given."""
    only = f" AND path IN ({', '.join('?' * len(names))})" if names else ""
    rows = connection.execute(
        f"SELECT {_ENTRY} FROM artifact_entry WHERE manifest_id = ?{only} ORDER BY path LIMIT ? OFFSET ?",
        (manifest_id, *names, first, offset),
    )
    return [Entry(*row) for row in rows]


def find_entry(connection: sqlite3.Connection, manifest_id: int, path: str) -> Entry | None:
    """The manifest's entry with that path."""
    found = entry_page(connection, manifest_id, 1, 0, [path])
    return found[0] if found else None


def has_digest(connection: sqlite3.Connection, manifest_id: int, digest: str) -> bool:
    """Whether one of the manifest's stored files has this digest."""
    query = "SELECT 1 FROM artifact_entry WHERE digest = ? AND ref IS NULL AND manifest_id = ? LIMIT 1"
    return connection.execute(query, (digest, manifest_id)).fetchone() is not None


def totals(connection: sqlite3.Connection, manifest_id: int) -> tuple[int, int]:
    """Bytes and number of the manifest's entries, references included."""
    query = "SELECT COALESCE(SUM(size), 0), COUNT(*) FROM artifact_entry WHERE manifest_id = ?"
    size, count = connection.execute(query, (manifest_id,)).fetchone()
    return size, count


def unstored(connection: sqlite3.Connection, manifest_id: int) -> list[str]:
    """Paths of the manifest's files whose content is not on disk, or has another size."""
    rows = connection.execute(
        "SELECT path FROM artifact_entry LEFT JOIN artifact_content AS content"
        " ON content.digest = artifact_entry.digest AND NOT is_damaged"
        " WHERE manifest_id = ? AND ref IS NULL"
        " AND (content.digest IS NULL OR content.size <> artifact_entry.size) ORDER BY path",
        (manifest_id,),
    )
    return [row[0] for row in rows]


def claim(connection: sqlite3.Connection, artifact_id: int, digest: str) -> None:
    """Keeps the content until the artifact is committed or deleted."""
    connection.execute("INSERT OR IGNORE INTO artifact_claim VALUES (?, ?)", (artifact_id, digest))


def release(connection: sqlite3.Connection, artifact_id: int) -> None:
    """Ends the claims and uploads of an artifact that is complete."""
    connection.execute("DELETE FROM artifact_claim WHERE artifact_id = ?", (artifact_id,))
    connection.execute("DELETE FROM artifact_upload WHERE artifact_id = ?", (artifact_id,))


def content(connection: sqlite3.Connection, digest: str) -> StoredContent | None:
    """The record of a content."""
    row = connection.execute(
        "SELECT digest, size, checksums, is_damaged FROM artifact_content WHERE digest = ?", (digest,)
    ).fetchone()
    return StoredContent(row[0], row[1], row[2], bool(row[3])) if row else None


def has_content(connection: sqlite3.Connection, digest: str) -> bool:
    """Whether the content is on disk, as far as is known undamaged."""
    query = "SELECT 1 FROM artifact_content WHERE digest = ? AND NOT is_damaged"
    return connection.execute(query, (digest,)).fetchone() is not None


def add_content(connection: sqlite3.Connection, digest: str, size: int, checksums: bytes, now: float) -> None:
    """Records a content that is on disk."""
    connection.execute(
        "INSERT OR REPLACE INTO artifact_content (digest, size, checksums, created_at) VALUES (?, ?, ?, ?)",
        (digest, size, checksums, now),
    )


def mark_damaged(connection: sqlite3.Connection, digest: str) -> None:
    """Records that the content on disk is not what was uploaded."""
    connection.execute("UPDATE artifact_content SET is_damaged = 1 WHERE digest = ?", (digest,))


def unused(connection: sqlite3.Connection) -> list[str]:
    """Digests of contents that no manifest lists and no artifact under construction claims."""
    rows = connection.execute(
        "SELECT digest FROM artifact_content AS content"
        " WHERE NOT EXISTS (SELECT 1 FROM artifact_entry WHERE digest = content.digest AND ref IS NULL)"
        " AND NOT EXISTS (SELECT 1 FROM artifact_claim WHERE digest = content.digest)"
    )
    return [row[0] for row in rows]


def delete_unused(connection: sqlite3.Connection, digests: Iterable[str]) -> list[str]:
    """Deletes the records of those contents that are still unused; their digests."""
    deleted = []
    for digest in digests:
        row = connection.execute(
            "DELETE FROM artifact_content WHERE digest = ?1"
            " AND NOT EXISTS (SELECT 1 FROM artifact_entry WHERE digest = ?1 AND ref IS NULL)"
            " AND NOT EXISTS (SELECT 1 FROM artifact_claim WHERE digest = ?1) RETURNING digest",
            (digest,),
        ).fetchone()
        if row:
            deleted.append(digest)
    return deleted


def add_upload(
    connection: sqlite3.Connection, artifact_id: int, digest: str, part_digests: Sequence[str]
) -> Upload:
    """Creates an upload in parts."""
    cursor = connection.execute(
        "INSERT INTO artifact_upload (artifact_id, digest, part_digests) VALUES (?, ?, ?)",
        (artifact_id, digest, json.dumps(part_digests)),
    )
    upload = get_upload(connection, int(cursor.lastrowid or 0))
    assert upload is not None
    return upload


def get_upload(connection: sqlite3.Connection, upload_id: int) -> Upload | None:
    """The upload of row `upload_id`."""
    row = connection.execute("SELECT * FROM artifact_upload WHERE id = ?", (upload_id,)).fetchone()
    return Upload(row[0], row[1], row[2], tuple(json.loads(row[3])), row[4]) if row else None


def uploads(connection: sqlite3.Connection) -> dict[int, str]:
    """The digests of all uploads in parts, by row."""
    return dict(connection.execute("SELECT id, digest FROM artifact_upload").fetchall())


def set_part_size(connection: sqlite3.Connection, upload_id: int, size: int) -> int:
    """Sets the size of the parts unless it is set; the size."""
    [part_size] = connection.execute(
        "UPDATE artifact_upload SET part_size = COALESCE(part_size, ?) WHERE id = ? RETURNING part_size",
        (size, upload_id),
    ).fetchone()
    return int(part_size)


def add_part(connection: sqlite3.Connection, upload_id: int, number: int, size: int) -> None:
    """Records that a part has arrived."""
    connection.execute("INSERT OR REPLACE INTO artifact_part VALUES (?, ?, ?)", (upload_id, number, size))


def parts(connection: sqlite3.Connection, upload_id: int) -> dict[int, int]:
    """Sizes in bytes of the parts that have arrived, by number."""
    query = "SELECT number, size FROM artifact_part WHERE upload_id = ?"
    return dict(connection.execute(query, (upload_id,)).fetchall())


def delete_upload(connection: sqlite3.Connection, upload_id: int) -> None:
    """Deletes the record of an upload."""
    connection.execute("DELETE FROM artifact_upload WHERE id = ?", (upload_id,))
