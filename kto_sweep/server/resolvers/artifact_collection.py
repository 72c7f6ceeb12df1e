"""Fields of artifact types, collections, memberships and aliases, and the collections of projects."""

from typing import Any

from kto_sweep.server.resolvers.artifact import collection_type, tag_node
from kto_sweep.server.resolvers.registry import Context, Fields, PageArgs, connection, page_args
from kto_sweep.server.store import artifact_collections as collections
from kto_sweep.server.store import artifacts, projects
from kto_sweep.server.store.artifact_collections import (
    COLUMNS,
    LATEST,
    VERSION_COLUMNS,
    Alias,
    ArtifactType,
    Collection,
    Member,
)
from kto_sweep.server.store.artifacts import Artifact
from kto_sweep.server.store.filters import Where, compile_filter, compile_order
from kto_sweep.server.store.ids import from_global, to_global
from kto_sweep.server.store.projects import Project
from kto_sweep.server.wire import timestamp

fields = Fields()

Page = dict[str, Any]


@fields.of("Query", "artifactCollection")
def _by_id(source: object, context: Context, id: str) -> Collection | None:
    row = from_global("ArtifactSequence", id)
    row = from_global("ArtifactPortfolio", id) if row is None else row
    return collections.get(context.reader, row) if row is not None else None


@fields.of("Project", "artifact")
def _artifact(project: Project, context: Context, name: str) -> Artifact | None:
    member = _named(project, context, name)
    return artifacts.get(context.reader, member.artifact_id) if member else None


@fields.of("Project", "artifactCollectionMembership")
def _named(project: Project, context: Context, name: str) -> Member | None:
    """The member at `collection:alias`; the newest without an alias."""
    collection_name, _, alias = name.partition(":")
    collection = collections.find(context.reader, project.id, collection_name)
    return collections.find_member(context.reader, collection.id, alias or LATEST) if collection else None


@fields.of("Project", "artifactType")
def _artifact_type(project: Project, context: Context, name: str) -> ArtifactType | None:
    return collections.find_type(context.reader, project.id, name)


@fields.of("Project", "artifactTypes")
def _artifact_types(
    project: Project, context: Context, after: str | None = None, first: int | None = None
) -> Page:
    page = page_args(first, after)
    return connection(collections.types(context.reader, project.id)[page.offset :][: page.first + 1], page)


@fields.of("Project", "artifactCollection")
def _collection(project: Project, context: Context, name: str) -> Collection | None:
    return collections.find(context.reader, project.id, name)


@fields.of("Project", "artifactCollections")
def _collections(
    project: Project,
    context: Context,
    after: str | None = None,
    first: int | None = None,
    filters: str | None = None,
    order: str | None = None,
) -> Page:
    where = compile_filter(filters, COLUMNS).and_also("project_id = ?", project.id)
    return _collection_page(context, where, order, page_args(first, after))


def _collection_page(context: Context, where: Where, order: str | None, page: PageArgs) -> Page:
    ordering = compile_order(order, COLUMNS)
    found = collections.page(context.reader, where, ordering, page.first + 1, page.offset)
    return connection(found, page) | {"total_count": collections.count(context.reader, where)}


@fields.of("ArtifactType", "id")
def _type_id(kind: ArtifactType, context: Context) -> str:
    return to_global("ArtifactType", kind.id)


@fields.of("ArtifactType", "description")
def _type_description(kind: ArtifactType, context: Context) -> None:
    return None


@fields.of("ArtifactType", "createdAt")
def _type_created_at(kind: ArtifactType, context: Context) -> str | None:
    return timestamp(kind.created_at)


@fields.of("ArtifactType", "artifactCollection")
def _collection_of_type(kind: ArtifactType, context: Context, name: str) -> Collection | None:
    return collections.find(context.reader, kind.project_id, name, kind.name)


@fields.of("ArtifactType", "artifactCollections")
def _collections_of_type(
    kind: ArtifactType,
    context: Context,
    after: str | None = None,
    first: int | None = None,
    filters: str | None = None,
    order: str | None = None,
) -> Page:
    where = compile_filter(filters, COLUMNS).and_also(
        "project_id = ? AND type = ?", kind.project_id, kind.name
    )
    return _collection_page(context, where, order, page_args(first, after))


@fields.of("ArtifactSequence", "id")
@fields.of("ArtifactPortfolio", "id")
def _collection_id(collection: Collection, context: Context) -> str:
    return to_global(collection_type(collection), collection.id)


@fields.of("ArtifactSequence", "state")
@fields.of("ArtifactPortfolio", "state")
def _state(collection: Collection, context: Context) -> str:
    return "READY" if collections.get(context.reader, collection.id) else "DELETED"


@fields.of("ArtifactSequence", "createdAt")
@fields.of("ArtifactPortfolio", "createdAt")
def _created_at(collection: Collection, context: Context) -> str | None:
    return timestamp(collection.created_at)


@fields.of("ArtifactSequence", "updatedAt")
@fields.of("ArtifactPortfolio", "updatedAt")
def _updated_at(collection: Collection, context: Context) -> str | None:
    return timestamp(collection.updated_at)


@fields.of("ArtifactSequence", "project")
@fields.of("ArtifactPortfolio", "project")
def _project(collection: Collection, context: Context) -> Project:
    return projects.get(context.reader, collection.project_id)


@fields.of("ArtifactSequence", "defaultArtifactType")
@fields.of("ArtifactPortfolio", "defaultArtifactType")
def _default_type(collection: Collection, context: Context) -> ArtifactType | None:
    return collections.find_type(context.reader, collection.project_id, collection.type)


@fields.of("ArtifactSequence", "tags")
@fields.of("ArtifactPortfolio", "tags")
def _tags(collection: Collection, context: Context) -> Page:
    return {"edges": [{"node": tag_node(name)} for name in collection.tags]}


@fields.of("ArtifactSequence", "aliases")
@fields.of("ArtifactPortfolio", "aliases")
def _aliases(
    collection: Collection, context: Context, after: str | None = None, first: int | None = None
) -> Page:
    page = page_args(first, after)
    found = collections.aliases_of_collection(context.reader, collection.id)
    return connection(found[page.offset : page.offset + page.first + 1], page)


@fields.of("ArtifactSequence", "artifacts")
@fields.of("ArtifactPortfolio", "artifacts")
def _artifacts(
    collection: Collection,
    context: Context,
    after: str | None = None,
    first: int | None = None,
    order: str | None = None,
    filters: str | None = None,
) -> Page:
    page = page_args(first, after)
    where = compile_filter(filters, VERSION_COLUMNS).and_also(
        "artifact_member.collection_id = ?", collection.id
    )
    ordering = compile_order(order, VERSION_COLUMNS)
    members = collections.version_page(context.reader, where, ordering, page.first + 1, page.offset)
    shown = connection(members, page)
    for edge in shown["edges"]:
        member = edge["node"]
        edge |= {
            "version": f"v{member.version}",
            "node": artifacts.get(context.reader, member.artifact_id),
        }
    return shown | {"total_count": collections.version_count(context.reader, where)}


@fields.of("ArtifactSequence", "artifactMembership")
@fields.of("ArtifactPortfolio", "artifactMembership")
def _membership(collection: Collection, context: Context, alias_name: str) -> Member | None:
    return collections.find_member(context.reader, collection.id, alias_name)


@fields.of("ArtifactSequence", "digestAlgorithm")
def _digest_algorithm(collection: Collection, context: Context) -> str:
    return "MANIFEST_MD5"


@fields.of("ArtifactSequence", "latestArtifact")
def _latest_artifact(collection: Collection, context: Context) -> Artifact | None:
    member = collections.newest_member(context.reader, collection.id)
    return artifacts.get(context.reader, member.artifact_id) if member else None


@fields.of("ArtifactCollectionMembership", "id")
def _member_id(member: Member, context: Context) -> str:
    return to_global("ArtifactCollectionMembership", member.id)


@fields.of("ArtifactCollectionMembership", "versionIndex")
def _member_version(member: Member, context: Context) -> int:
    return member.version


@fields.of("ArtifactCollectionMembership", "createdAt")
def _member_created_at(member: Member, context: Context) -> str | None:
    return timestamp(member.created_at)


@fields.of("ArtifactCollectionMembership", "aliases")
def _member_aliases(member: Member, context: Context) -> list[Alias]:
    return collections.aliases_of_member(context.reader, member.id)


@fields.of("ArtifactCollectionMembership", "artifactCollection")
def _member_collection(member: Member, context: Context) -> Collection | None:
    return collections.get(context.reader, member.collection_id)


@fields.of("ArtifactCollectionMembership", "artifact")
def _member_artifact(member: Member, context: Context) -> Artifact | None:
    return artifacts.get(context.reader, member.artifact_id)


@fields.of("ArtifactAlias", "id")
def _alias_id(alias: Alias, context: Context) -> str:
    return to_global("ArtifactAlias", alias.id)


@fields.of("ArtifactAlias", "artifactCollection")
def _alias_collection(alias: Alias, context: Context) -> Collection | None:
    return collections.get(context.reader, alias.collection_id)
