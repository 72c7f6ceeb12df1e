"""Files of runs: URLs with a token, bytes on disk under names that no client chooses."""

import base64
import fnmatch
import hashlib
import hmac
import mimetypes
import os
import re
import secrets
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from kto_sweep.server import run_writes
from kto_sweep.server.backend import Backend
from kto_sweep.server.errors import GoneError, RequestError
from kto_sweep.server.store import files
from kto_sweep.server.store.files import File
from kto_sweep.server.store.runs import Run

LARGEST_FILE = 4 * 2**30
"""Bytes of one uploaded file at most."""
MOST_FILES = 1000
"""Files announced in one request at most."""
LONGEST_NAME = 1000


class TooLarge(Exception):
    """The body is larger than the server takes. Answered with HTTP 413."""


def announce(
    connection: sqlite3.Connection, backend: Backend, wanted: dict[str, Any]
) -> tuple[Run, list[File]]:
    """The run and the records of the files that are about to come. Raises RequestError."""
    run = run_writes.by_path(connection, wanted)
    names = wanted["files"]
    if len(names) > MOST_FILES or any(not name or len(name) > LONGEST_NAME for name in names):
        raise RequestError(
            f"at most {MOST_FILES} files with names of 1 to {LONGEST_NAME} characters at a time"
        )
    now = backend.now()
    return run, [files.announce(connection, run.id, name, now) for name in names]


def url(backend: Backend, base_url: str, file: File) -> str:
    """Where the file is uploaded to and downloaded from; the token in it stands for the key."""
    # The name is for people; clients would fold dots and slashes in it, and the number says it all.
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", file.name).strip("._") or "file"
    return f"{base_url}/storage/{file.id}/{_token(backend, file.id)}/{readable}"


def _token(backend: Backend, file_id: int) -> str:
    return backend.sign(f"file {file_id}")


def authorised(backend: Backend, file_id: int, token: str) -> File:
    """The file, if the token is the right one. Raises GoneError otherwise."""
    file = files.get(backend.database.reader(), file_id)
    if file is None or not hmac.compare_digest(token.encode(), _token(backend, file_id).encode()):
        raise GoneError("there is no such file")
    return file


def path_of(backend: Backend, file: File) -> Path:
    """Where the bytes lie: numbers only, so that no name can lead anywhere else."""
    return backend.files / str(file.run_id) / str(file.id)


def download(backend: Backend, file: File) -> FileResponse:
    """The bytes of a file, always as a download: a browser must not run what a client uploaded.

    Raises GoneError while they have not arrived.
    """
    path = path_of(backend, file)
    if not path.is_file():
        raise GoneError("the file has not been uploaded")
    return FileResponse(
        path,
        media_type=mimetype(file.name),
        filename=Path(file.name).name,
        headers={"x-content-type-options": "nosniff", "content-security-policy": "sandbox"},
    )


async def store(backend: Backend, file: File, chunks: AsyncIterator[bytes]) -> None:
    """The bytes are on disk and the file's record says so. Raises TooLarge, OSError."""
    target = path_of(backend, file)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    try:
        size, md5 = await _write(part, chunks)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    now = backend.now()
    await run_in_threadpool(backend.database.write, lambda c: files.arrived(c, file.id, size, md5, now))


async def _write(path: Path, chunks: AsyncIterator[bytes]) -> tuple[int, str]:
    size, digest = 0, hashlib.md5(usedforsecurity=False)
    with path.open("wb") as stream:
        async for chunk in chunks:
            size += len(chunk)
            if size > LARGEST_FILE:
                raise TooLarge
            digest.update(chunk)
            stream.write(chunk)
        stream.flush()
        await run_in_threadpool(os.fsync, stream.fileno())
    return size, base64.b64encode(digest.digest()).decode()


def mimetype(name: str) -> str:
    """The kind of file that the name suggests."""
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def like(name: str, pattern: str) -> bool:
    """Whether the name matches an SQL LIKE pattern, as W&B's file search takes it."""
    return fnmatch.fnmatchcase(name, pattern.replace("%", "*").replace("_", "?"))
