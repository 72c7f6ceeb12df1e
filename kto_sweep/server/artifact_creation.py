"""Creates and commits artifacts: what a client does to log one."""

import sqlite3
from collections.abc import Sequence
from typing import Any

from kto_sweep.server import artifact_manifest
from kto_sweep.server.artifact_manifest import Manifest
from kto_sweep.server.artifact_values import (
    MAX_NAME,
    Input,
    by_global_id,
    by_id,
    read_aliases,
    read_metadata,
    read_tags,
    read_ttl,
)
from kto_sweep.server.errors import RequestError
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store import artifact_collections as collections
from kto_sweep.server.store import artifact_contents as contents
from kto_sweep.server.store import artifacts, projects, runs
from kto_sweep.server.store.artifact_collections import Collection, CollectionKind
from kto_sweep.server.store.artifact_contents import ManifestKind, ManifestRecord
from kto_sweep.server.store.artifacts import Artifact, ArtifactState, Role
from kto_sweep.server.store.ids import from_global
from kto_sweep.server.store.runs import Run

MAX_SHOWN = 3
"""Maximum paths that an error lists."""


def create(connection: sqlite3.Connection, server: ServerState, fields: Input) -> Artifact:
    """The artifact that a client is about to upload.

    The same content again is the same artifact: a committed one gets the new aliases, an uncommitted one is
    continued. Raises RequestError.
    """
    now = server.now()
    collection = _sequence(connection, fields, now)
    run = _run(connection, fields)
    artifact = _existing(connection, collection, fields)
    aliases = read_aliases(alias["alias"] for alias in fields.get("aliases") or ())
    if artifact is not None and artifact.state is ArtifactState.COMMITTED:
        member = collections.member_of(connection, collection.id, artifact.id)
        assert member is not None
        collections.set_aliases(connection, member, aliases)
    else:
        artifact = _start(connection, collection, artifact, run, aliases, fields, now)
    if run is not None:
        artifacts.add_run(connection, artifact.id, run.id, Role.LOGGED)
    if client_id := fields.get("client_id"):
        artifacts.add_client(connection, artifact.id, client_id)
    return artifact


def _sequence(connection: sqlite3.Connection, fields: Input, now: float) -> Collection:
    """The sequence for a new artifact, created if it is missing."""
    names = [*(fields.get("artifact_collection_names") or ()), fields.get("artifact_collection_name")]
    name, type_name = names[0], fields["artifact_type_name"]
    if not name or any(len(text) > MAX_NAME for text in (name, type_name)):
        raise RequestError(f"an artifact needs a name and a type of 1 to {MAX_NAME} characters")
    if region := fields.get("storage_region"):
        raise RequestError(f"this server has no storage region {region!r}: create the artifact without one")
    project = projects.ensure(connection, fields.get("entity_name"), fields.get("project_name"), now)
    kind = CollectionKind.SEQUENCE
    collection = collections.ensure(connection, project.id, name, kind, type_name, now)
    if collection.kind is not kind:
        raise RequestError(f"{name} holds links to artifacts: log the artifact under another name")
    if collection.type != type_name:
        raise RequestError(
            f"the artifact {name} has the type {collection.type!r}, not {type_name!r}:"
            " use that type, or another name"
        )
    return collection


def _run(connection: sqlite3.Connection, fields: Input) -> Run | None:
    """The run that logs the artifact; None for one of another project, or none at all."""
    project = projects.find(connection, fields.get("entity_name"), fields.get("project_name"))
    name = fields.get("run_name")
    return runs.find(connection, project.id, name) if project and name else None


def _existing(connection: sqlite3.Connection, collection: Collection, fields: Input) -> Artifact | None:
    """The artifact that the client would log again or continue."""
    if distributed_id := fields.get("distributed_id"):
        return artifacts.find_distributed(connection, collection.id, distributed_id)
    if client_id := fields.get("client_id"):
        # The same request again: its answer was lost.
        artifact = artifacts.find_by_client(connection, client_id)
        if artifact is not None and artifact.collection_id == collection.id:
            return artifact
    if fields.get("enable_digest_deduplication"):
        return artifacts.find_by_digest(connection, collection.id, fields["digest"])
    return None


def _start(
    connection: sqlite3.Connection,
    collection: Collection,
    artifact: Artifact | None,
    run: Run | None,
    aliases: Sequence[str],
    fields: Input,
    now: float,
) -> Artifact:
    """A new artifact with the client's values, or a continued one, which keeps those that are not given."""
    values: dict[str, Any] = {
        "digest": fields["digest"],
        "run_id": run.id if run else None,
        "description": fields.get("description"),
        "metadata": read_metadata(fields.get("metadata")),
        "tags": read_tags(fields.get("tags")),
        "requested_aliases": list(
            dict.fromkeys((*(artifact.requested_aliases if artifact else ()), *aliases))
        ),
        "distributed_id": fields.get("distributed_id"),
        "history_step": fields.get("history_step"),
    } | read_ttl(fields)
    if artifact is None:
        return artifacts.insert(connection, collection.id, now, **values)
    given = {name: value for name, value in values.items() if value not in (None, [])}
    artifacts.update(connection, artifact.id, now, **given)
    return by_id(connection, artifact.id)


def pending(connection: sqlite3.Connection, global_id: str) -> Artifact:
    """The artifact of a global id, which must not be committed. Raises RequestError."""
    artifact = by_global_id(connection, global_id)
    require_pending(artifact)
    return artifact


def require_pending(artifact: Artifact) -> None:
    """Raises RequestError for a committed artifact."""
    if artifact.state is not ArtifactState.PENDING:
        raise RequestError("the artifact is complete; its files cannot be changed: log a new version")


def add_manifest(connection: sqlite3.Connection, server: ServerState, fields: Input) -> ManifestRecord:
    """Announces a manifest of an uncommitted artifact. Raises RequestError."""
    artifact = pending(connection, fields["artifact_id"])
    artifacts.touch(connection, [artifact.id], server.now())
    base = _base(connection, fields)
    return contents.add_manifest(
        connection, artifact.id, ManifestKind(fields["type"]), base, fields.get("digest") or ""
    )


def announce_manifest(connection: sqlite3.Connection, server: ServerState, fields: Input) -> ManifestRecord:
    """Announces the content of a manifest that was added before. Raises RequestError."""
    manifest = manifest_by_id(connection, from_global("ArtifactManifest", fields["artifact_manifest_id"]))
    artifacts.touch(connection, [manifest.artifact_id], server.now())
    contents.announce_manifest(connection, manifest.id, fields.get("digest") or "", _base(connection, fields))
    return manifest_by_id(connection, manifest.id)


def manifest_by_id(connection: sqlite3.Connection, manifest_id: int | None) -> ManifestRecord:
    """The manifest of a row. Raises RequestError."""
    manifest = contents.get_manifest(connection, manifest_id) if manifest_id is not None else None
    if manifest is None:
        raise RequestError("there is no such manifest; its artifact may have been deleted")
    return manifest


def fill_manifest(connection: sqlite3.Connection, manifest_id: int, manifest: Manifest) -> None:
    """Stores an uploaded manifest of an uncommitted artifact. Raises RequestError."""
    record = manifest_by_id(connection, manifest_id)
    require_pending(by_id(connection, record.artifact_id))
    contents.fill_manifest(connection, record.id, manifest.head, manifest.entries)


def _base(connection: sqlite3.Connection, fields: Input) -> int | None:
    base = fields.get("base_artifact_id")
    return by_global_id(connection, base).id if base else None


def commit(connection: sqlite3.Connection, server: ServerState, global_id: str) -> Artifact:
    """Makes an artifact the next version of its sequence. Raises RequestError if a file has not arrived."""
    artifact = by_global_id(connection, global_id)
    if artifact.state is ArtifactState.COMMITTED:
        return artifact  # the same request again: its answer was lost
    now = server.now()
    manifest, digest = _complete_manifest(connection, artifact)
    if missing := contents.unstored(connection, manifest.id):
        shown = ", ".join(missing[:MAX_SHOWN]) + (", ..." if len(missing) > MAX_SHOWN else "")
        raise RequestError(f"{len(missing)} files of the artifact have not arrived: {shown}; log it again")
    member = collections.add_member(connection, artifact.collection_id, artifact.id, now)
    collections.set_aliases(connection, member, artifact.requested_aliases)
    size, count = contents.totals(connection, manifest.id)
    artifacts.update(
        connection,
        artifact.id,
        now,
        state=ArtifactState.COMMITTED,
        version=member.version,
        digest=digest,
        manifest_id=manifest.id,
        size=size,
        file_count=count,
        requested_aliases=[],
    )
    contents.delete_other_manifests(connection, artifact.id, manifest.id)
    contents.release(connection, artifact.id)
    return by_id(connection, artifact.id)


def _complete_manifest(connection: sqlite3.Connection, artifact: Artifact) -> tuple[ManifestRecord, str]:
    """The artifact's complete manifest, merged if it arrived in parts, and the artifact's digest."""
    uploaded = contents.manifests(connection, artifact.id)
    if not uploaded:
        raise RequestError("the manifest of the artifact has not arrived; log it again")
    newest = uploaded[-1]
    if newest.kind is ManifestKind.FULL:
        return newest, artifact.digest
    sources = [manifest.id for manifest in uploaded if manifest.kind is ManifestKind.PATCH]
    if newest.kind is ManifestKind.INCREMENTAL:
        base = by_id(connection, newest.base_artifact_id) if newest.base_artifact_id is not None else None
        if base is not None and base.manifest_id is None:
            raise RequestError("the artifact that this one extends is not complete")
        sources = [*([base.manifest_id] if base and base.manifest_id else []), newest.id]
    merged = contents.add_manifest(connection, artifact.id, ManifestKind.FULL, None, "")
    contents.fill_manifest(connection, merged.id, newest.head or "{}", ())
    for source in sources:
        contents.copy_entries(connection, source, merged.id)
    return merged, artifact_manifest.digest_of(contents.entries(connection, merged.id))
