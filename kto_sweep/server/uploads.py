"""Files of runs: signed URLs, and contents on disk under names that clients cannot choose."""

import fnmatch
import mimetypes
import re
import secrets
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from kto_sweep.server import received_file, run_notices, run_writes, signed_urls
from kto_sweep.server.errors import BodyTooLarge, DiskFull, NotFoundError, RequestError
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store import files
from kto_sweep.server.store.files import File
from kto_sweep.server.store.runs import Run

MAX_FILE = 4 * 2**30
"""Maximum bytes of an uploaded file."""
MAX_FILES = 1000
"""Maximum files announced in one request."""
MAX_NAME = 1000
USE = "file of a run"
"""Use of the URLs' tokens."""


def announce(
    connection: sqlite3.Connection, server: ServerState, fields: dict[str, Any]
) -> tuple[Run, list[File]]:
    """Creates records for files that a client is about to upload. Raises RequestError."""
    run = run_writes.by_path(connection, fields)
    names = fields["files"]
    if len(names) > MAX_FILES or any(not name or len(name) > MAX_NAME for name in names):
        raise RequestError(
            f"a request may announce at most {MAX_FILES} files with names of 1 to {MAX_NAME} characters"
        )
    now = server.now()
    return run, [files.announce(connection, run.id, name, now) for name in names]


def url(server: ServerState, base_url: str, file: File) -> str:
    """Upload and download URL of the file; its token replaces the API key."""
    return f"{base_url}/storage/{signed_urls.sign(server, USE, file.id)}/{readable(file.name)}"


def readable(name: str) -> str:
    """A name as the last part of a URL, which a token identifies: only for readability."""
    # Clients would normalize dots and slashes.
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "file"


def authorize(server: ServerState, token: str) -> File:
    """The file of a URL's token. Raises NotFoundError for a wrong or expired token."""
    file = files.get(server.database.reader(), signed_urls.verify(server, USE, token))
    if file is None:
        raise NotFoundError("no such file")
    return file


def path_of(server: ServerState, file: File) -> Path:
    """Path of the contents: ids only, so that a file name cannot escape the folder."""
    return server.files / str(file.run_id) / str(file.id)


def download(server: ServerState, file: File) -> FileResponse:
    """Sends a file as an attachment: a browser must not execute what a client uploaded.

    Raises NotFoundError until the upload is complete.
    """
    path = path_of(server, file)
    if not path.is_file():
        raise NotFoundError("the file has not been uploaded")
    return FileResponse(
        path,
        media_type=mimetype(file.name),
        filename=Path(file.name).name,
        headers={"x-content-type-options": "nosniff", "content-security-policy": "sandbox"},
    )


async def store(server: ServerState, file: File, chunks: AsyncIterator[bytes], size: int) -> None:
    """Writes an upload of `size` bytes to disk and marks its record as complete.

    The SDK does not say that a file was too large or did not fit, so the run's page does.
    Raises BodyTooLarge, DiskFull, OSError.
    """
    target = path_of(server, file)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    try:
        received_file.require_space(server.files, size)
        content = await received_file.receive(part, chunks, max_bytes=MAX_FILE)
        part.replace(target)
    except (BodyTooLarge, DiskFull) as problem:
        too_large = f"a file may have at most {MAX_FILE // 2**30} GiB"
        reason = str(problem) if isinstance(problem, DiskFull) else too_large
        await run_in_threadpool(
            server.database.write,
            lambda c: run_notices.note(c, file.run_id, file.name, reason, server.now()),
        )
        raise
    finally:
        part.unlink(missing_ok=True)
    now = server.now()
    await run_in_threadpool(
        server.database.write, lambda c: files.arrived(c, file.id, content.size, content.md5, now)
    )


def after_start(server: ServerState) -> None:
    """Removes what a server that died has left of its uploads, and of the exports beside them.

    Call it before the server accepts requests: it does not spare uploads under way. Raises OSError.
    """
    for part in server.files.glob("*/*.part"):
        part.unlink()


def mimetype(name: str) -> str:
    """MIME type by the name's extension."""
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def matches_like(name: str, pattern: str) -> bool:
    """Whether the name matches an SQL LIKE pattern, as in W&B's file search."""
    return fnmatch.fnmatchcase(name, pattern.replace("%", "*").replace("_", "?"))
