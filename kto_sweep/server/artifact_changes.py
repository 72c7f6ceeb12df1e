"""Changes, links and deletes artifacts and their collections."""

import sqlite3
from typing import Any

from kto_sweep.server import run_writes
from kto_sweep.server.artifact_values import (
    MAX_NAME,
    Input,
    by_global_id,
    by_id,
    collection_by_id,
    collection_by_name,
    read_aliases,
    read_metadata,
    read_tags,
    read_ttl,
)
from kto_sweep.server.errors import RequestError
from kto_sweep.server.refused import REGISTRIES
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store import artifact_collections as collections
from kto_sweep.server.store import artifacts, projects
from kto_sweep.server.store.artifact_collections import Collection, CollectionKind, Member
from kto_sweep.server.store.artifacts import Artifact, ArtifactState, Role

REGISTRY_PREFIX = "wandb-registry-"


def update(connection: sqlite3.Connection, server: ServerState, fields: Input) -> Artifact:
    """Changes an artifact's description, metadata, tags, time to live and aliases. Raises RequestError."""
    artifact = by_global_id(connection, fields["artifact_id"])
    values = read_ttl(fields)
    if fields.get("description") is not None:
        values["description"] = fields["description"]
    if fields.get("metadata") is not None:
        values["metadata"] = read_metadata(fields["metadata"])
    removed = set(read_tags(fields.get("tags_to_delete")))
    kept = [tag for tag in artifact.tags if tag not in removed]
    values["tags"] = list(dict.fromkeys((*kept, *read_tags(fields.get("tags_to_add")))))
    artifacts.update(connection, artifact.id, server.now(), **values)
    if fields.get("aliases") is not None:
        member = collections.member_of(connection, artifact.collection_id, artifact.id)
        if member is None:
            raise RequestError("the artifact is not complete: it gets aliases when it is")
        old = [alias.alias for alias in collections.aliases_of_member(connection, member.id)]
        collections.delete_aliases(connection, member, old)
        collections.set_aliases(
            connection, member, read_aliases(alias["alias"] for alias in fields["aliases"])
        )
    return by_id(connection, artifact.id)


def add_aliases(connection: sqlite3.Connection, fields: Input) -> None:
    """Gives an artifact aliases in the collections that the client names. Raises RequestError."""
    for member, alias in _named_aliases(connection, fields):
        collections.set_aliases(connection, member, read_aliases([alias]))


def delete_aliases(connection: sqlite3.Connection, fields: Input) -> None:
    """Takes aliases from an artifact in the collections that the client names. Raises RequestError."""
    for member, alias in _named_aliases(connection, fields):
        collections.delete_aliases(connection, member, [alias])


def _named_aliases(connection: sqlite3.Connection, fields: Input) -> list[tuple[Member, str]]:
    artifact = by_global_id(connection, fields["artifact_id"])
    named = []
    for entry in fields["aliases"]:
        collection = collection_by_name(
            connection, entry["entityName"], entry["projectName"], entry["artifactCollectionName"]
        )
        member = collections.member_of(connection, collection.id, artifact.id)
        if member is None:
            raise RequestError(f"the artifact is not in the collection {collection.name}")
        named.append((member, entry["alias"]))
    return named


def use(connection: sqlite3.Connection, fields: Input) -> Artifact:
    """Records that a run uses an artifact. Raises RequestError."""
    artifact = by_global_id(connection, fields["artifact_id"])
    artifacts.add_run(connection, artifact.id, run_writes.by_path(connection, fields).id, Role.USED)
    return artifact


def delete(connection: sqlite3.Connection, fields: Input) -> Artifact:
    """Deletes an artifact. Raises RequestError when it has aliases and they are not to be deleted too."""
    artifact = by_global_id(connection, fields["artifact_id"])
    named = [
        alias.alias
        for member in collections.memberships(connection, artifact.id)
        for alias in collections.aliases_of_member(connection, member.id)
    ]
    if named and not fields.get("delete_aliases"):
        raise RequestError(
            f"the artifact has the aliases {', '.join(named)}; to delete it with them:"
            " artifact.delete(delete_aliases=True)"
        )
    artifacts.delete(connection, artifact.id)
    return artifact


def link(connection: sqlite3.Connection, server: ServerState, fields: Input) -> Member:
    """Links an artifact into a portfolio, which is created if it is missing. Raises RequestError."""
    artifact = _linked(connection, fields)
    name, project_name = fields.get("artifact_portfolio_name") or "", fields.get("project_name") or ""
    if project_name.startswith(REGISTRY_PREFIX):
        raise RequestError(REGISTRIES.sentence)
    now = server.now()
    source = collections.get(connection, artifact.collection_id)
    assert source is not None
    if fields.get("artifact_portfolio_id"):
        portfolio = collection_by_id(connection, "ArtifactPortfolio", fields["artifact_portfolio_id"])
    else:
        if not name or len(name) > MAX_NAME:
            raise RequestError(f"a collection needs a name of 1 to {MAX_NAME} characters")
        project = projects.ensure(connection, fields.get("entity_name"), project_name, now)
        kind = CollectionKind.PORTFOLIO
        portfolio = collections.ensure(connection, project.id, name, kind, source.type, now)
    if portfolio.kind is not CollectionKind.PORTFOLIO:
        raise RequestError(f"{portfolio.name} is the name of logged artifacts: link under another name")
    if portfolio.type != source.type:
        raise RequestError(
            f"the collection {portfolio.name} holds artifacts of type {portfolio.type!r}, not {source.type!r}"
        )
    member = collections.add_member(connection, portfolio.id, artifact.id, now)
    collections.set_aliases(
        connection, member, read_aliases(alias["alias"] for alias in fields.get("aliases") or ())
    )
    return member


def _linked(connection: sqlite3.Connection, fields: Input) -> Artifact:
    if fields.get("artifact_id"):
        artifact: Artifact | None = by_global_id(connection, fields["artifact_id"])
    else:
        artifact = artifacts.find_by_client(connection, fields.get("client_id") or "")
    if artifact is None or artifact.state is not ArtifactState.COMMITTED:
        raise RequestError("the artifact is not complete: wait for it (artifact.wait()) before you link it")
    return artifact


def unlink(connection: sqlite3.Connection, fields: Input) -> None:
    """Removes a link. Raises RequestError."""
    artifact = by_global_id(connection, fields["artifact_id"])
    portfolio = collection_by_id(connection, "ArtifactPortfolio", fields["artifact_portfolio_id"])
    member = collections.member_of(connection, portfolio.id, artifact.id)
    if member is None:
        raise RequestError(f"the artifact is not linked into {portfolio.name}")
    collections.remove_member(connection, member.id)


def update_collection(
    connection: sqlite3.Connection, server: ServerState, kind: str, fields: Input
) -> Collection:
    """Changes a collection's name and description. Raises RequestError."""
    collection = _changed(connection, kind, fields)
    values = {name: fields[name] for name in ("name", "description") if fields.get(name) is not None}
    name = values.get("name", collection.name)
    if not name or len(name) > MAX_NAME:
        raise RequestError(f"a collection needs a name of 1 to {MAX_NAME} characters")
    if name != collection.name and collections.find(connection, collection.project_id, name):
        raise RequestError(f"the project has an artifact collection {name} already")
    return _set(connection, server, collection, **values)


def move_sequence(connection: sqlite3.Connection, server: ServerState, fields: Input) -> Collection:
    """Changes the type of a sequence. Raises RequestError."""
    collection = _changed(connection, "ArtifactSequence", fields)
    return _set(connection, server, collection, type=fields["destination_artifact_type_name"])


def delete_collection(connection: sqlite3.Connection, kind: str, fields: Input) -> Collection:
    """Deletes a collection; a sequence with its artifacts, wherever they are linked. Raises RequestError."""
    collection = _changed(connection, kind, fields)
    collections.delete(connection, collection.id)
    return collection


def add_collection_tags(connection: sqlite3.Connection, server: ServerState, fields: Input) -> Collection:
    """Adds tags to a collection. Raises RequestError."""
    collection = _tagged(connection, fields)
    tags = list(dict.fromkeys((*collection.tags, *read_tags(fields["tags"]))))
    return _set(connection, server, collection, tags=tags)


def delete_collection_tags(connection: sqlite3.Connection, server: ServerState, fields: Input) -> Collection:
    """Removes tags from a collection. Raises RequestError."""
    collection = _tagged(connection, fields)
    removed = set(read_tags(fields["tags"]))
    return _set(connection, server, collection, tags=[tag for tag in collection.tags if tag not in removed])


def _tagged(connection: sqlite3.Connection, fields: Input) -> Collection:
    return collection_by_name(
        connection, fields["entity_name"], fields["project_name"], fields["artifact_collection_name"]
    )


def _changed(connection: sqlite3.Connection, kind: str, fields: Input) -> Collection:
    key = "artifact_sequence_id" if kind == "ArtifactSequence" else "artifact_portfolio_id"
    return collection_by_id(connection, kind, fields[key])


def _set(
    connection: sqlite3.Connection, server: ServerState, collection: Collection, **values: Any
) -> Collection:
    collections.update(connection, collection, server.now(), **values)
    changed = collections.get(connection, collection.id)
    assert changed is not None
    return changed
