"""Fields of the single user, of entities and of the server."""

from typing import Any

from kto_sweep.search.options import BLOCK
from kto_sweep.server.resolvers.registry import Context, Fields
from kto_sweep.server.store.ids import to_global
from kto_sweep.server.store.projects import DEFAULT_ENTITY

fields = Fields()

FEATURES = (
    "MARK_RUN_FILES_UPLOADED",
    "SWEEPS_LOCAL_SCHEDULER",
    "ARTIFACT_V2_DOWNLOAD_HANDLER_SUPPORTS_ARTIFACT_ID",
    "ARTIFACT_MEMBERSHIP_IN_LINK_ARTIFACT_RESPONSE",
    "TOTAL_COUNT_IN_FILE_CONNECTION",
    BLOCK,
)
"""Optional protocol features that this server supports; the last is specific to kto-sweep."""


def local_user() -> dict[str, Any]:
    """The user `local`: everyone with the key is this user."""
    return {
        "id": to_global("User", 1),
        "name": DEFAULT_ENTITY,
        "username": DEFAULT_ENTITY,
        "email": "local@localhost",
        "admin": True,
        "flags": "{}",
        "entity": DEFAULT_ENTITY,
        "deleted_at": None,
        "api_keys": {"edges": []},
        "teams": {"edges": [{"node": named_entity(DEFAULT_ENTITY)}]},
    }


def named_entity(name: str) -> dict[str, Any]:
    """The entity of that name; every name is valid."""
    return {
        "id": f"entity-{name}",
        "name": name,
        "is_team": False,
        "xxhash_digests_enabled": False,
        "organization": None,
    }


@fields.of("Query", "viewer")
def _viewer(source: object, context: Context) -> dict[str, Any]:
    return local_user()


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
