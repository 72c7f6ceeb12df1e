"""Fields of artifacts, their manifests and files, and the artifacts of runs."""

from typing import Any

from graphql import GraphQLInterfaceType, GraphQLSchema, GraphQLUnionType

from kto_sweep.server.artifact_values import NO_TTL, by_global_id
from kto_sweep.server.errors import RequestError
from kto_sweep.server.resolvers import file as file_nodes
from kto_sweep.server.resolvers.file import FileNode
from kto_sweep.server.resolvers.registry import Context, Fields, connection, page_args
from kto_sweep.server.store import artifact_collections as collections
from kto_sweep.server.store import artifact_contents as contents
from kto_sweep.server.store import artifacts, runs
from kto_sweep.server.store.artifact_collections import (
    Alias,
    ArtifactType,
    Collection,
    CollectionKind,
    Member,
)
from kto_sweep.server.store.artifact_contents import ManifestRecord
from kto_sweep.server.store.artifacts import Artifact, Role
from kto_sweep.server.store.ids import to_global
from kto_sweep.server.store.runs import Run
from kto_sweep.server.wire import timestamp

fields = Fields()

MAX_FILES = 5_000
"""Maximum files of a page: wandb asks for the URLs of that many at once."""


def set_types(schema: GraphQLSchema) -> None:
    """Sets how the executor finds the type of an object of an abstract type."""
    collection, creator = schema.type_map["ArtifactCollection"], schema.type_map["ArtifactCreator"]
    assert isinstance(collection, GraphQLInterfaceType)
    assert isinstance(creator, GraphQLUnionType)
    collection.resolve_type = lambda value, info, kind: collection_type(value)
    creator.resolve_type = lambda value, info, kind: "Run"


def collection_type(collection: Collection) -> str:
    """The GraphQL type of a collection, also the kind of its global id."""
    return "ArtifactSequence" if collection.kind is CollectionKind.SEQUENCE else "ArtifactPortfolio"


def tag_node(name: str) -> dict[str, str]:
    """A tag as a GraphQL object."""
    return {"id": f"tag-{name}", "name": name}


def _sequence(context: Context, artifact: Artifact) -> Collection:
    collection = collections.get(context.reader, artifact.collection_id)
    assert collection is not None
    return collection


@fields.of("Query", "artifact")
def _by_id(source: object, context: Context, id: str) -> Artifact | None:
    try:
        return by_global_id(context.reader, id)
    except RequestError:
        return None


@fields.of("Query", "clientIDMapping")
def _client_id_mapping(source: object, context: Context, client_id: str) -> dict[str, str] | None:
    artifact = artifacts.find_by_client(context.reader, client_id)
    return {"server_id": to_global("Artifact", artifact.id)} if artifact else None


@fields.of("Run", "outputArtifacts")
def _output_artifacts(
    run: Run, context: Context, after: str | None = None, first: int | None = None
) -> dict[str, Any]:
    return _of_run(run, context, Role.LOGGED, after, first)


@fields.of("Run", "inputArtifacts")
def _input_artifacts(
    run: Run, context: Context, after: str | None = None, first: int | None = None
) -> dict[str, Any]:
    return _of_run(run, context, Role.USED, after, first)


def _of_run(run: Run, context: Context, role: Role, after: str | None, first: int | None) -> dict[str, Any]:
    page = page_args(first, after)
    found = artifacts.of_run(context.reader, run.id, role)
    shown = found[page.offset : page.offset + page.first + 1]
    return connection(shown, page) | {"total_count": len(found)}


@fields.of("Artifact", "id")
def _id(artifact: Artifact, context: Context) -> str:
    return to_global("Artifact", artifact.id)


@fields.of("Artifact", "digestAlgorithm")
def _digest_algorithm(artifact: Artifact, context: Context) -> str:
    return "MANIFEST_MD5"


@fields.of("Artifact", "artifactSequence")
def _artifact_sequence(artifact: Artifact, context: Context) -> Collection:
    return _sequence(context, artifact)


@fields.of("Artifact", "artifactType")
def _artifact_type(artifact: Artifact, context: Context) -> ArtifactType | None:
    sequence = _sequence(context, artifact)
    return collections.find_type(context.reader, sequence.project_id, sequence.type)


@fields.of("Artifact", "versionIndex")
def _version_index(artifact: Artifact, context: Context) -> int | None:
    return artifact.version


@fields.of("Artifact", "ttlDurationSeconds")
def _ttl_duration_seconds(artifact: Artifact, context: Context) -> int:
    return NO_TTL if artifact.ttl_seconds is None else artifact.ttl_seconds


@fields.of("Artifact", "tags")
def _tags(artifact: Artifact, context: Context) -> list[dict[str, str]]:
    return [tag_node(name) for name in artifact.tags]


@fields.of("Artifact", "commitHash")
def _commit_hash(artifact: Artifact, context: Context) -> str:
    return artifact.digest


@fields.of("Artifact", "createdAt")
def _created_at(artifact: Artifact, context: Context) -> str | None:
    return timestamp(artifact.created_at)


@fields.of("Artifact", "updatedAt")
def _updated_at(artifact: Artifact, context: Context) -> str | None:
    return timestamp(artifact.updated_at)


@fields.of("Artifact", "aliases")
def _aliases(artifact: Artifact, context: Context) -> list[Alias]:
    return [
        alias
        for member in collections.memberships(context.reader, artifact.id)
        for alias in collections.aliases_of_member(context.reader, member.id)
    ]


@fields.of("Artifact", "currentManifest")
def _current_manifest(artifact: Artifact, context: Context) -> ManifestRecord | None:
    if artifact.manifest_id is None:
        return None
    return contents.get_manifest(context.reader, artifact.manifest_id)


@fields.of("Artifact", "usedBy")
def _used_by(
    artifact: Artifact, context: Context, after: str | None = None, first: int | None = None
) -> dict[str, Any]:
    page = page_args(first, after)
    found = artifacts.used_by(context.reader, artifact.id)
    return connection(found[page.offset : page.offset + page.first + 1], page)


@fields.of("Artifact", "createdBy")
def _created_by(artifact: Artifact, context: Context) -> Run | None:
    return runs.get(context.reader, artifact.run_id) if artifact.run_id is not None else None


@fields.of("Artifact", "artifactMemberships")
def _memberships(
    artifact: Artifact, context: Context, after: str | None = None, first: int | None = None
) -> dict[str, Any]:
    page = page_args(first, after, default=500)
    found = collections.memberships(context.reader, artifact.id)
    return connection(found[page.offset : page.offset + page.first + 1], page)


@fields.of("Artifact", "files")
def _files(
    artifact: Artifact,
    context: Context,
    names: list[str] | None = None,
    after: str | None = None,
    first: int | None = None,
) -> dict[str, Any]:
    return _file_page(artifact, context, names, after, first)


@fields.of("ArtifactCollectionMembership", "files")
def _member_files(
    member: Member,
    context: Context,
    names: list[str] | None = None,
    after: str | None = None,
    first: int | None = None,
) -> dict[str, Any] | None:
    artifact = artifacts.get(context.reader, member.artifact_id)
    return _file_page(artifact, context, names, after, first) if artifact else None


def _file_page(
    artifact: Artifact, context: Context, names: list[str] | None, after: str | None, first: int | None
) -> dict[str, Any]:
    page = page_args(first, after, maximum=MAX_FILES)
    if len(names or ()) > MAX_FILES:
        raise RequestError(f"a request may name at most {MAX_FILES} files")
    found, total = [], 0
    if artifact.manifest_id is not None:
        reader, manifest = context.reader, artifact.manifest_id
        found = contents.entry_page(reader, manifest, page.first + 1, page.offset, names or ())
        total = len(found) if names else artifact.file_count
    nodes = [file_nodes.of_artifact(context, artifact, entry) for entry in found]
    return connection(nodes, page) | {"total_count": total}


@fields.of("Artifact", "filesByManifestEntries")
def _files_by_manifest_entries(
    artifact: Artifact,
    context: Context,
    storage_layout: str,
    manifest_version: str,
    entries: list[dict[str, Any]] | None = None,
    storage_region: str | None = None,
    after: str | None = None,
    first: int | None = None,
) -> dict[str, Any]:
    names = [entry["name"] for entry in entries or ()]
    return _file_page(artifact, context, names or None, after, first or max(len(names), 1))


@fields.of("ArtifactManifest", "id")
def _manifest_id(manifest: ManifestRecord, context: Context) -> str:
    return to_global("ArtifactManifest", manifest.id)


@fields.of("ArtifactManifest", "file")
def _manifest_file(manifest: ManifestRecord, context: Context) -> FileNode:
    return file_nodes.of_manifest(context, manifest)
