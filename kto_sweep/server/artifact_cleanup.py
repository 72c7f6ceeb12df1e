"""Deletes artifacts that have expired or were never completed, and file contents that no artifact needs."""

import sqlite3

from kto_sweep.server import artifact_storage
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.signed_urls import URL_SECONDS
from kto_sweep.server.store import artifact_contents as contents
from kto_sweep.server.store import artifacts

ABANDONED_SECONDS = URL_SECONDS
"""Seconds without a request after which an uncommitted artifact is deleted: its URLs have expired by then."""


def run_once(server: ServerState) -> None:
    """Deletes unused artifacts and files. Raises StoreUnavailable, OSError."""
    now, reader = server.now(), server.database.reader()
    old = [*artifacts.expired(reader, now), *artifacts.abandoned(reader, now - ABANDONED_SECONDS)]
    if old:
        server.database.write(lambda c: _delete_artifacts(c, old, now))
    _remove_uploads(server)
    if unused := contents.unused(reader):
        # The records first: a content without a record is removed at the next start if the server dies here.
        deleted = server.database.write(lambda c: contents.delete_unused(c, unused))
        artifact_storage.remove(server, deleted)


def _delete_artifacts(connection: sqlite3.Connection, old: list[int], now: float) -> None:
    """Deletes those of the artifacts that have not changed in the meantime."""
    still = {*artifacts.expired(connection, now), *artifacts.abandoned(connection, now - ABANDONED_SECONDS)}
    for artifact_id in still.intersection(old):
        artifacts.delete(connection, artifact_id)


def after_start(server: ServerState) -> None:
    """Removes what a server that died has left: uploads in one request, and contents without a record.

    Call it before the server accepts requests: it does not spare uploads under way.
    """
    folder = artifact_storage.uploads_folder(server)
    for part in folder.glob("*.part"):
        part.unlink()
    _remove_uploads(server)
    reader = server.database.reader()
    # An upload in parts that was renamed but not recorded can still be completed.
    kept = set(contents.uploads(reader).values())
    stored = artifact_storage.stored(server)
    artifact_storage.remove(
        server, [digest for digest in stored if digest not in kept and not contents.content(reader, digest)]
    )


def _remove_uploads(server: ServerState) -> None:
    """Removes the files of uploads in parts that have no record."""
    # The list of files comes first: an upload that starts now has its record before its file.
    files = [*artifact_storage.uploads_folder(server).glob("*.parts")]
    files += artifact_storage.uploads_folder(server).glob("*.last")
    known = contents.uploads(server.database.reader())
    for path in files:
        if int(path.stem) not in known:
            path.unlink(missing_ok=True)
