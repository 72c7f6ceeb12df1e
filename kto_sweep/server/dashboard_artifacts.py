"""JSON and downloads of artifacts for the run page."""

import sqlite3

from starlette.responses import Response

from kto_sweep.server import artifact_storage
from kto_sweep.server.artifact_routes import send
from kto_sweep.server.dashboard_data import Row
from kto_sweep.server.errors import NotFoundError
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store import artifact_contents as contents
from kto_sweep.server.store import artifacts
from kto_sweep.server.store.runs import Run

MAX_ARTIFACTS = 200
"""The last artifacts of a run that its page lists."""
FILES = 100
"""Files of one response."""


def of_run(connection: sqlite3.Connection, run: Run) -> Row:
    """The artifacts that the run logged or used, the last ones first, and how many there are in all."""
    listed = [
        {
            "id": each.id,
            "name": f"{each.name}:v{each.version}",
            "aliases": each.aliases,
            "type": each.type,
            "role": each.role,
            "size": each.size,
            "files": each.file_count,
            "created": each.created_at,
        }
        for each in artifacts.summaries_of_run(connection, run.id, MAX_ARTIFACTS)
    ]
    return {"listed": listed, "count": artifacts.count_of_run(connection, run.id)}


def files_of(connection: sqlite3.Connection, artifact_id: int, offset: int) -> Row:
    """The artifact's files from number `offset` on, by path; `next` is the next number, or None at the end.

    Raises NotFoundError.
    """
    entries = contents.entry_page(connection, _manifest(connection, artifact_id), FILES + 1, offset)
    return {
        "files": [
            {"path": entry.path, "size": entry.size, "reference": entry.ref} for entry in entries[:FILES]
        ],
        "next": offset + FILES if len(entries) > FILES else None,
    }


def download(server: ServerState, artifact_id: int, path: str, byte_range: str | None) -> Response:
    """A file of the artifact as an attachment. Raises NotFoundError, ContentDamaged."""
    connection = server.database.reader()
    entry = contents.find_entry(connection, _manifest(connection, artifact_id), path)
    if entry is None or entry.ref is not None:
        raise NotFoundError("the artifact has no such file")
    return send(artifact_storage.Reader(server, entry.digest), path, byte_range)


def _manifest(connection: sqlite3.Connection, artifact_id: int) -> int:
    artifact = artifacts.get(connection, artifact_id)
    if artifact is None or artifact.manifest_id is None:
        raise NotFoundError("no such artifact")
    return artifact.manifest_id
