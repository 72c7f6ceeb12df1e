"""Uploads in parts, which wandb uses for files of 2 GiB and more.

All parts but the last have one size, so each is written at its place in one sparse file, in any order. The
last part's place is known once another part has arrived, so it waits in a file of its own.
"""

import base64
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from kto_sweep.errors import is_disk_full
from kto_sweep.server import artifact_storage, received_file
from kto_sweep.server.errors import RequestError
from kto_sweep.server.received_file import BLOCK, Content, Hasher
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store import artifact_contents as contents
from kto_sweep.server.store.artifact_contents import Upload
from kto_sweep.server.store.database import StoreUnavailable

MAX_PARTS = 10_000


def part_digests(parts: Sequence[dict[str, Any]]) -> list[str]:
    """The MD5 of each part in base64, by number, from a client's announcement. Raises RequestError."""
    by_number = {part["partNumber"]: str(part["hexMD5"]) for part in parts}
    if not 2 <= len(parts) <= MAX_PARTS or sorted(by_number) != list(range(1, len(parts) + 1)):
        raise RequestError(f"an upload in parts has 2 to {MAX_PARTS} parts, numbered from 1")
    try:
        digests = [bytes.fromhex(by_number[number]) for number in range(1, len(parts) + 1)]
    except ValueError as problem:
        raise RequestError(f"the digest of a part is not hexadecimal: {problem}") from problem
    return [base64.b64encode(digest).decode() for digest in digests]


def parts_path(server: ServerState, upload_id: int) -> Path:
    """The file of all parts but the last; at the end, of all."""
    return artifact_storage.uploads_folder(server) / f"{upload_id}.parts"


def last_path(server: ServerState, upload_id: int) -> Path:
    """The file of the last part."""
    return artifact_storage.uploads_folder(server) / f"{upload_id}.last"


async def store(
    server: ServerState, upload: Upload, number: int, chunks: AsyncIterator[bytes], size: int
) -> str:
    """Stores a part of `size` bytes; its digest in base64. Raises RequestError, DiskFull, OSError."""
    received_file.require_space(server.artifacts.parent, size)
    is_last = number == len(upload.part_digests)
    if is_last:
        path, offset = last_path(server, upload.id), 0
    else:
        part_size = await run_in_threadpool(server.database.write, lambda c: _part_size(c, upload.id, size))
        if size != part_size:
            raise RequestError(
                f"part {number} has {size} bytes, but the parts before the last have {part_size}"
            )
        path, offset = parts_path(server, upload.id), (number - 1) * part_size
    content = await received_file.receive(path, chunks, offset=offset, max_bytes=size)
    if content.md5 != upload.part_digests[number - 1] or content.size != size:
        raise RequestError(f"part {number} is not what was announced; it changed on the way")
    await run_in_threadpool(server.database.write, lambda c: _record(c, upload.id, number, size))
    return content.md5


def _part_size(connection: sqlite3.Connection, upload_id: int, size: int) -> int:
    """The size of the parts, which the first to arrive sets."""
    _require_upload(connection, upload_id)
    return contents.set_part_size(connection, upload_id, size)


def _record(connection: sqlite3.Connection, upload_id: int, number: int, size: int) -> None:
    _require_upload(connection, upload_id)
    contents.add_part(connection, upload_id, number, size)


def _require_upload(connection: sqlite3.Connection, upload_id: int) -> None:
    if contents.get_upload(connection, upload_id) is None:
        raise RequestError("there is no such upload: it is complete, or its artifact has been deleted")


def complete(server: ServerState, upload_id: int, digest: str) -> None:
    """Makes the parts one content, unless it is there already. Raises RequestError, StoreUnavailable."""
    # A large file takes longer to verify than wandb waits for the answer: it asks again meanwhile, and that
    # request waits here for the first one.
    with server.upload_locks.of(upload_id):
        if contents.has_content(server.database.reader(), digest):
            return
        upload = contents.get_upload(server.database.reader(), upload_id)
        if upload is None:
            raise RequestError("there is no such upload; log the artifact again")
        arrived = contents.parts(server.database.reader(), upload.id)
        if missing := [number for number in range(1, len(upload.part_digests) + 1) if number not in arrived]:
            raise RequestError(f"{len(missing)} parts have not arrived, the first is part {missing[0]}")
        path = parts_path(server, upload.id)
        if not path.exists():
            # The server died, or could not write, between the rename and its record.
            path = artifact_storage.path_of(server, upload.digest)
        try:
            _append_last(server, upload, path)
            artifact_storage.adopt(server, upload.digest, path, _verify(path), upload.id)
        except RequestError:
            # The client starts again with a new upload; cleanup removes the files.
            server.database.write(lambda c: contents.delete_upload(c, upload.id))
            raise
        except OSError as problem:
            if is_disk_full(problem):
                raise StoreUnavailable(f"the file cannot be written: {problem}") from problem
            raise
        last_path(server, upload.id).unlink(missing_ok=True)


def _append_last(server: ServerState, upload: Upload, path: Path) -> None:
    """Copies the last part to its place; repeating it after a crash changes nothing."""
    assert upload.part_size is not None
    position = upload.part_size * (len(upload.part_digests) - 1)
    with last_path(server, upload.id).open("rb") as last, path.open("r+b") as file:
        file.seek(position)
        while block := last.read(BLOCK):
            file.write(block)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _verify(path: Path) -> Content:
    hasher = Hasher()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            hasher.add(block)
    return hasher.content()
