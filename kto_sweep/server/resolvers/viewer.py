"""Fields of the single user, of entities and of the server."""

from typing import Any

from kto_sweep.search.options import BLOCK
from kto_sweep.server.errors import RefusedError
from kto_sweep.server.refused import REGISTRIES
from kto_sweep.server.resolvers.registry import Context, Fields
from kto_sweep.server.store import files
from kto_sweep.server.store.ids import to_global
from kto_sweep.server.store.projects import DEFAULT_ENTITY

fields = Fields()

FEATURES = (
    "MARK_RUN_FILES_UPLOADED",
    "UPDATE_RUN_STATE",
    "FILESTREAM_GZIP",
    "SWEEPS_LOCAL_SCHEDULER",
    "ARTIFACT_COLLECTIONS_FILTERING_SORTING",
    "ARTIFACT_V2_DOWNLOAD_HANDLER_SUPPORTS_ARTIFACT_ID",
    "ARTIFACT_MEMBERSHIP_IN_LINK_ARTIFACT_RESPONSE",
    "TOTAL_COUNT_IN_FILE_CONNECTION",
    # Without these two the SDK advises an upgrade of the server; with them it sends requests about
    # registries, which are refused in words (see refused.py).
    "ARTIFACT_REGISTRY_SEARCH",
    "INCLUDE_ARTIFACT_TYPES_IN_REGISTRY_CREATION",
    BLOCK,
)
"""Optional protocol features that this server supports; the last is specific to kto-sweep."""


def local_user() -> dict[str, Any]:
    """The user `local`: everyone with the key is this user."""
    key = {"id": to_global("ApiKey", 1), "name": DEFAULT_ENTITY, "description": None}
    return {
        "id": to_global("User", 1),
        "name": DEFAULT_ENTITY,
        "username": DEFAULT_ENTITY,
        "email": "local@localhost",
        "admin": False,
        "flags": "{}",
        "entity": DEFAULT_ENTITY,
        "deleted_at": None,
        "api_keys": {"edges": [{"node": key}]},
        "teams": {"edges": [{"node": named_entity(DEFAULT_ENTITY)}]},
    }


def named_entity(name: str) -> dict[str, Any]:
    """The entity of that name; every name is valid, and every entity is the single user's."""
    return {
        "id": f"entity-{name}",
        "name": name,
        "is_team": False,
        "entity_type": "user",
        "xxhash_digests_enabled": False,
        "organization": None,
        "available": False,
        "read_only": False,
        "read_only_admin": False,
        "private_only": True,
        "code_saving_enabled": True,
        "is_paid": False,
        "default_access": "PRIVATE",
        "photo_url": None,
    }


@fields.of("Query", "viewer")
def _viewer(source: object, context: Context) -> dict[str, Any]:
    return local_user()


@fields.of("Query", "users")
def _users(source: object, context: Context, query: str | None = None) -> dict[str, Any]:
    """The single user, if `query` is a part of its name or address."""
    user = local_user()
    matches = any((query or "") in user[key] for key in ("username", "email"))
    return {"edges": [{"node": user}] if matches else []}


@fields.of("Entity", "user")
def _entity_user(entity: dict[str, Any], context: Context) -> dict[str, Any]:
    return local_user()


@fields.of("User", "organizations")
def _organizations(user: dict[str, Any], context: Context) -> None:
    # Asked for on the way to a registry; for an empty list the SDK would advise to name an organization.
    raise RefusedError(REGISTRIES.sentence)


@fields.of("Entity", "storageBytes")
def _storage_bytes(entity: dict[str, Any], context: Context) -> int:
    return files.total_bytes(context.reader, entity["name"])


@fields.of("Entity", "members")
def _members(entity: dict[str, Any], context: Context) -> list[dict[str, Any]]:
    return [local_user() | {"pending": False, "account_type": "USER", "photo_url": None, "api_key": None}]


@fields.of("Query", "entity")
def _entity(source: object, context: Context, name: str | None = None) -> dict[str, Any]:
    return named_entity(name or DEFAULT_ENTITY)


@fields.of("Query", "organization")
def _organization(source: object, context: Context, name: str | None = None) -> None:
    return None


@fields.of("Query", "serverInfo")
def _server_info(source: object, context: Context) -> dict[str, Any]:
    return {
        "cli_version_info": {"max_cli_version": "0.99.0"},
        "latest_local_version_info": None,
        "features": [{"name": name, "is_enabled": True} for name in FEATURES],
    }
