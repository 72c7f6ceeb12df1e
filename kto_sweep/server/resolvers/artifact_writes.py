"""Mutations of artifacts: each is one write transaction."""

import sqlite3
from collections.abc import Callable
from typing import Any

from kto_sweep.server import artifact_changes, artifact_creation, artifact_parts, artifact_urls
from kto_sweep.server.artifact_manifest import check_path, hex_digest
from kto_sweep.server.errors import RequestError
from kto_sweep.server.resolvers.artifact import tag_node
from kto_sweep.server.resolvers.file import FileNode
from kto_sweep.server.resolvers.registry import Context, Fields, snake_keys
from kto_sweep.server.store import artifact_contents as contents
from kto_sweep.server.store import artifacts
from kto_sweep.server.store.artifact_contents import Upload
from kto_sweep.server.store.ids import to_global

fields = Fields()

Input = dict[str, Any]
Payload = dict[str, Any]

MAX_FILES = 10_000
"""Maximum files announced in one request."""
DONE: Payload = {"success": True}


@fields.of("Mutation", "createArtifact")
def _create(source: object, context: Context, input: Input) -> Payload:
    server, values = context.server, snake_keys(input)
    return {"artifact": server.database.write(lambda c: artifact_creation.create(c, server, values))}


@fields.of("Mutation", "createArtifactManifest")
def _create_manifest(source: object, context: Context, input: Input) -> Payload:
    server, values = context.server, snake_keys(input)
    manifest = server.database.write(lambda c: artifact_creation.add_manifest(c, server, values))
    return {"artifact_manifest": manifest}


@fields.of("Mutation", "updateArtifactManifest")
def _update_manifest(source: object, context: Context, input: Input) -> Payload:
    server, values = context.server, snake_keys(input)
    manifest = server.database.write(lambda c: artifact_creation.announce_manifest(c, server, values))
    return {"artifact_manifest": manifest}


@fields.of("Mutation", "createArtifactFiles")
def _create_files(source: object, context: Context, input: Input) -> Payload:
    specs = input["artifactFiles"]
    if len(specs) > MAX_FILES:
        raise RequestError(f"a request may announce at most {MAX_FILES} files")
    nodes = context.server.database.write(lambda c: [_announce_file(c, context, spec) for spec in specs])
    return {"files": {"edges": [{"node": node} for node in nodes], "page_info": {"has_next_page": False}}}


def _announce_file(connection: sqlite3.Connection, context: Context, spec: Input) -> FileNode:
    """A file with its upload URLs, unless its content is on disk already."""
    artifact, digest, path = (
        artifact_creation.pending(connection, spec["artifactID"]),
        spec["md5"],
        spec["name"],
    )
    check_path(path)
    hex_digest(digest)
    contents.claim(connection, artifact.id, digest)
    artifacts.touch(connection, [artifact.id], context.server.now())
    url = parts = None
    if not contents.has_content(connection, digest):
        url = artifact_urls.upload(context.server, context.base_url, artifact.id, digest, path)
        if announced := spec.get("uploadPartsInput"):
            part_digests = artifact_parts.part_digests(announced)
            parts = _part_urls(context, contents.add_upload(connection, artifact.id, digest, part_digests))
    return FileNode(
        id=to_global("ArtifactFile", artifact.id),
        name=path,
        upload_url=url,
        md5=digest,
        storage_path=digest,
        upload_multipart_urls=parts,
        artifact=artifact,
    )


def _part_urls(context: Context, upload: Upload) -> Payload:
    return {
        "upload_id": str(upload.id),
        "upload_url_parts": [
            {
                "part_number": number,
                "upload_url": artifact_urls.part(context.server, context.base_url, upload.id, number),
            }
            for number in range(1, len(upload.part_digests) + 1)
        ],
    }


@fields.of("Mutation", "completeMultipartUploadArtifact")
def _complete_upload(source: object, context: Context, input: Input) -> Payload:
    upload_id, digest = input["uploadID"], input["storagePath"]
    if not upload_id.isdecimal() or len(upload_id) > 15:
        raise RequestError(f"{upload_id!r} is not the id of an upload")
    artifact_parts.complete(context.server, int(upload_id), digest)
    return {"digest": digest}


@fields.of("Mutation", "commitArtifact")
def _commit(source: object, context: Context, input: Input) -> Payload:
    server = context.server
    artifact_id = input["artifactID"]
    return {"artifact": server.database.write(lambda c: artifact_creation.commit(c, server, artifact_id))}


@fields.of("Mutation", "updateArtifact")
def _update(source: object, context: Context, input: Input) -> Payload:
    server, values = context.server, snake_keys(input)
    return {"artifact": server.database.write(lambda c: artifact_changes.update(c, server, values))}


@fields.of("Mutation", "deleteArtifact")
def _delete(source: object, context: Context, input: Input) -> Payload:
    values = snake_keys(input)
    return {"artifact": context.server.database.write(lambda c: artifact_changes.delete(c, values))}


@fields.of("Mutation", "useArtifact")
def _use(source: object, context: Context, input: Input) -> Payload:
    values = snake_keys(input)
    return {"artifact": context.server.database.write(lambda c: artifact_changes.use(c, values))}


@fields.of("Mutation", "addAliases")
def _add_aliases(source: object, context: Context, input: Input) -> Payload:
    context.server.database.write(lambda c: artifact_changes.add_aliases(c, snake_keys(input)))
    return DONE


@fields.of("Mutation", "deleteAliases")
def _delete_aliases(source: object, context: Context, input: Input) -> Payload:
    context.server.database.write(lambda c: artifact_changes.delete_aliases(c, snake_keys(input)))
    return DONE


@fields.of("Mutation", "linkArtifact")
def _link(source: object, context: Context, input: Input) -> Payload:
    server = context.server
    member = server.database.write(lambda c: artifact_changes.link(c, server, snake_keys(input)))
    return {"version_index": member.version, "artifact_membership": member}


@fields.of("Mutation", "unlinkArtifact")
def _unlink(source: object, context: Context, input: Input) -> Payload:
    context.server.database.write(lambda c: artifact_changes.unlink(c, snake_keys(input)))
    return DONE


def _collection_change(name: str, change: Callable[..., Any]) -> None:
    """Registers a mutation that changes a collection; `change` takes connection, server and values."""

    @fields.of("Mutation", name)
    def resolve(source: object, context: Context, input: Input) -> Payload:
        server, values = context.server, snake_keys(input)
        return {"artifact_collection": server.database.write(lambda c: change(c, server, values))}


_collection_change(
    "updateArtifactSequence",
    lambda c, server, values: artifact_changes.update_collection(c, server, "ArtifactSequence", values),
)
_collection_change(
    "updateArtifactPortfolio",
    lambda c, server, values: artifact_changes.update_collection(c, server, "ArtifactPortfolio", values),
)
_collection_change("moveArtifactSequence", artifact_changes.move_sequence)
_collection_change(
    "deleteArtifactSequence",
    lambda c, server, values: artifact_changes.delete_collection(c, "ArtifactSequence", values),
)
_collection_change(
    "deleteArtifactPortfolio",
    lambda c, server, values: artifact_changes.delete_collection(c, "ArtifactPortfolio", values),
)


@fields.of("Mutation", "createArtifactCollectionTagAssignments")
def _add_collection_tags(source: object, context: Context, input: Input) -> Payload:
    server, values = context.server, snake_keys(input)
    collection = server.database.write(lambda c: artifact_changes.add_collection_tags(c, server, values))
    return {"tags": [tag_node(name) for name in collection.tags]}


@fields.of("Mutation", "deleteArtifactCollectionTagAssignments")
def _delete_collection_tags(source: object, context: Context, input: Input) -> Payload:
    server, values = context.server, snake_keys(input)
    server.database.write(lambda c: artifact_changes.delete_collection_tags(c, server, values))
    return DONE
