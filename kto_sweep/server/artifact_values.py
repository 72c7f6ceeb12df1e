"""Reads the values that clients send for artifacts: ids, aliases, tags, metadata, times to live."""

import re
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

from kto_sweep.server import run_writes
from kto_sweep.server.errors import RequestError
from kto_sweep.server.store import artifact_collections as collections
from kto_sweep.server.store import artifacts, projects
from kto_sweep.server.store.artifact_collections import Collection
from kto_sweep.server.store.artifacts import Artifact
from kto_sweep.server.store.ids import from_global

Input = Mapping[str, Any]

MAX_NAME = 128
"""Maximum characters of the name of a collection, type, alias or tag, as on W&B."""
INHERIT_TTL, NO_TTL = -1, -2
"""What clients send in place of seconds."""

_VERSION = re.compile(r"v\d+")


def read_metadata(text: str | None) -> str | None:
    """The metadata, after checking that it is a JSON object. Raises RequestError."""
    return None if text is None else run_writes.json_object(text, "metadata")


def read_ttl(fields: Input) -> dict[str, Any]:
    """The columns of the time to live; empty if the client does not set it. Raises RequestError."""
    seconds = fields.get("ttl_duration_seconds")
    if seconds is None:
        return {}
    if seconds in (INHERIT_TTL, NO_TTL):
        return {"ttl_seconds": None, "ttl_is_inherited": seconds == INHERIT_TTL}
    if seconds <= 0:
        raise RequestError(f"{seconds} is not a time to live: use a positive number of seconds")
    return {"ttl_seconds": seconds, "ttl_is_inherited": False}


def read_tags(inputs: Iterable[Input] | None) -> list[str]:
    """The names of tags, without repetition. Raises RequestError."""
    names = [tag["tagName"] for tag in inputs or ()]
    if any(not name or len(name) > MAX_NAME for name in names):
        raise RequestError(f"a tag has 1 to {MAX_NAME} characters")
    return list(dict.fromkeys(names))


def read_aliases(names: Iterable[str]) -> list[str]:
    """The aliases without repetition. Raises RequestError for one that names a version."""
    unique = list(dict.fromkeys(names))
    for name in unique:
        if not name or len(name) > MAX_NAME or not {"/", ":"}.isdisjoint(name):
            raise RequestError(
                f"{name[:80]!r} is not an alias: use 1 to {MAX_NAME} characters without / and :"
            )
        if _VERSION.fullmatch(name):
            raise RequestError(f"{name!r} is a version, not an alias: the server numbers versions itself")
    return unique


def by_id(connection: sqlite3.Connection, artifact_id: int) -> Artifact:
    """The artifact of a row. Raises RequestError."""
    artifact = artifacts.get(connection, artifact_id)
    if artifact is None:
        raise RequestError("there is no such artifact; it may have been deleted")
    return artifact


def by_global_id(connection: sqlite3.Connection, global_id: str) -> Artifact:
    """The artifact of a global id. Raises RequestError."""
    row = from_global("Artifact", global_id)
    if row is None:
        raise RequestError(f"{global_id!r} is not the id of an artifact")
    return by_id(connection, row)


def collection_by_name(
    connection: sqlite3.Connection, entity: str | None, project_name: str | None, name: str
) -> Collection:
    """The collection at `entity/project/name`. Raises RequestError."""
    project = projects.find(connection, entity, project_name)
    collection = collections.find(connection, project.id, name) if project else None
    if collection is None:
        raise RequestError(f"there is no artifact collection {entity}/{project_name}/{name}")
    return collection


def collection_by_id(connection: sqlite3.Connection, kind: str, global_id: str) -> Collection:
    """The collection of a global id of that kind. Raises RequestError."""
    row = from_global(kind, global_id)
    collection = collections.get(connection, row) if row is not None else None
    if collection is None:
        raise RequestError(f"there is no artifact collection with id {global_id}")
    return collection
