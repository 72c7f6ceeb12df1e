"""Files of runs: signed URLs, and contents on disk under names that clients cannot choose."""

import base64
import fnmatch
import hashlib
import mimetypes
import os
import re
import secrets
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from kto_sweep.server import run_notices, run_writes
from kto_sweep.server.errors import BodyTooLarge, NotFoundError, RequestError
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store import files
from kto_sweep.server.store.files import File
from kto_sweep.server.store.runs import Run

MAX_FILE = 4 * 2**30
"""Maximum bytes of an uploaded file."""
MAX_FILES = 1000
"""Maximum files announced in one request."""
MAX_NAME = 1000
URL_SECONDS = 7 * 86_400
"""Seconds until the URL of a file expires; wandb asks for one before each upload, and a notebook may hold one
for days."""


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
    # The name is only for readability: the token identifies the file, and clients would normalize dots and
    # slashes.
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", file.name).strip("._") or "file"
    return f"{base_url}/storage/{_signer(server).dumps(file.id)}/{readable}"


def _signer(server: ServerState) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(server.key, salt="file of a run")


def authorize(server: ServerState, token: str) -> File:
    """The file of a URL's token. Raises NotFoundError for a wrong or expired token."""
    try:
        file_id, signed_at = _signer(server).loads(token, return_timestamp=True)
    except BadSignature as problem:
        raise NotFoundError("no such file") from problem
    # Not max_age: it also rejects a URL from before the clock was set back, and wandb would lose that file.
    if server.now() - signed_at.timestamp() > URL_SECONDS:
        raise NotFoundError("the file's URL has expired")
    file = files.get(server.database.reader(), file_id)
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


async def store(server: ServerState, file: File, chunks: AsyncIterator[bytes]) -> None:
    """Writes an upload to disk and marks its record as complete. Raises BodyTooLarge, OSError.

    The SDK tells nobody that a file was too large, so the run's page does.
    """
    target = path_of(server, file)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    try:
        size, md5 = await _write(part, chunks)
        part.replace(target)
    except BodyTooLarge:
        text = f"{file.name}: a file may have at most {MAX_FILE // 2**30} GiB"
        await run_in_threadpool(
            server.database.write, lambda c: run_notices.note(c, file.run_id, text, server.now())
        )
        raise
    finally:
        part.unlink(missing_ok=True)
    now = server.now()
    await run_in_threadpool(server.database.write, lambda c: files.arrived(c, file.id, size, md5, now))


async def _write(path: Path, chunks: AsyncIterator[bytes]) -> tuple[int, str]:
    size, digest = 0, hashlib.md5(usedforsecurity=False)
    with path.open("wb") as stream:
        async for chunk in chunks:
            size += len(chunk)
            if size > MAX_FILE:
                raise BodyTooLarge
            digest.update(chunk)
            stream.write(chunk)
        stream.flush()
        await run_in_threadpool(os.fsync, stream.fileno())
    return size, base64.b64encode(digest.digest()).decode()


def mimetype(name: str) -> str:
    """MIME type by the name's extension."""
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def matches_like(name: str, pattern: str) -> bool:
    """Whether the name matches an SQL LIKE pattern, as in W&B's file search."""
    return fnmatch.fnmatchcase(name, pattern.replace("%", "*").replace("_", "?"))
