"""Contents of artifacts' files on disk: one file per content, named by its digest, verified when it is read.

    artifacts/ab/ab01...           a complete content
    artifacts/uploads/*.part       an upload in one request
    artifacts/uploads/*.parts      an upload in parts, each written at its place
    artifacts/uploads/*.last       its last part, until the size of the others is known

A content gets its name by a rename once it is complete, synced, and has the digest that the client announced.
The rename and its record, as well as a deletion, are jobs of the database's writer thread, so that a content
that is uploaded again while it is being deleted is not lost.
"""

import logging
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from kto_sweep.server import received_file
from kto_sweep.server.artifact_manifest import from_hex, hex_digest
from kto_sweep.server.errors import ContentDamaged, RequestError
from kto_sweep.server.received_file import BLOCK, CHECKSUM_BYTES, Content
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store import artifact_contents as contents

_log = logging.getLogger(__name__)


def path_of(server: ServerState, digest: str) -> Path:
    """Where the content with this digest is. Raises RequestError for what is not a digest."""
    name = hex_digest(digest)
    return server.artifacts / name[:2] / name


def uploads_folder(server: ServerState) -> Path:
    """The folder of contents that are being uploaded."""
    folder = server.artifacts / "uploads"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def store(server: ServerState, digest: str, chunks: AsyncIterator[bytes], size: int) -> None:
    """Stores a content that arrives in one request of `size` bytes.

    Raises RequestError when it has another digest, DiskFull, OSError.
    """
    received_file.require_space(server.artifacts.parent, size)
    part = uploads_folder(server) / f"{hex_digest(digest)}.{secrets.token_hex(4)}.part"
    try:
        content = await received_file.receive(part, chunks)
        await run_in_threadpool(adopt, server, digest, part, content)
    finally:
        part.unlink(missing_ok=True)


def adopt(
    server: ServerState, digest: str, file: Path, content: Content, upload_id: int | None = None
) -> None:
    """Makes a complete, synced file the content with this digest, and ends an upload in parts.

    Raises RequestError, OSError.
    """
    if content.md5 != digest:
        raise RequestError(
            f"the content has the digest {content.md5}, but {digest} was announced; it changed on the way, or"
            " the file changed after it was added to the artifact"
        )
    target, now = path_of(server, digest), server.now()

    def rename(connection: sqlite3.Connection) -> None:
        target.parent.mkdir(exist_ok=True)
        file.replace(target)
        # A rename is only safe from power loss once its folder is synced, and the new folder in its parent.
        for folder in (target.parent, target.parent.parent):
            _sync(folder)
        contents.add_content(connection, digest, content.size, content.checksums, now)
        if upload_id is not None:
            contents.delete_upload(connection, upload_id)

    server.database.write(rename)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Reader:
    """Reads a content in blocks and verifies each before it is sent."""

    def __init__(self, server: ServerState, digest: str) -> None:
        """Opens the content and verifies its first block. Raises ContentDamaged."""
        self._server = server
        self._digest = digest
        self._path = path_of(server, digest)
        record = contents.content(server.database.reader(), digest)
        if record is None or record.is_damaged:
            raise ContentDamaged(self._message())
        self._checksums = record.checksums
        self.size = record.size
        """Bytes."""
        try:
            self._file = self._path.open("rb")
        except OSError as problem:
            raise self._damaged() from problem
        try:
            if os.fstat(self._file.fileno()).st_size != self.size:
                raise self._damaged()
            self._block(0)
        except BaseException:
            self._file.close()
            raise

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` to before `stop`, in pieces; closes the file. Raises ContentDamaged."""
        with self._file:
            position = start
            while position < stop:
                number, offset = divmod(position, BLOCK)
                piece = self._block(number)[offset : offset + stop - position]
                yield piece
                position += len(piece)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _block(self, number: int) -> bytes:
        block = os.pread(self._file.fileno(), BLOCK, number * BLOCK) if self.size else b""
        known = self._checksums[number * CHECKSUM_BYTES : (number + 1) * CHECKSUM_BYTES]
        if self.size and (not block or received_file.checksum(block) != known):
            raise self._damaged()
        return block

    def _damaged(self) -> ContentDamaged:
        """The error; also has the next upload of this content replace the damaged one."""
        self._server.database.write(lambda c: contents.mark_damaged(c, self._digest))
        _log.error("%s is not what was uploaded: the disk damaged it, or someone changed it", self._path)
        return ContentDamaged(self._message())

    def _message(self) -> str:
        return (
            f"the stored file {self._path} is missing or damaged; restore it from a backup,"
            " or log an artifact with this file again"
        )


def remove(server: ServerState, digests: Iterable[str]) -> None:
    """Removes those of these contents from disk that have no record."""

    # One job for each: between two, uploads continue.
    def unlink(connection: sqlite3.Connection, digest: str) -> None:
        if contents.content(connection, digest) is None:
            path_of(server, digest).unlink(missing_ok=True)

    for digest in digests:
        server.database.write(partial(unlink, digest=digest))


def stored(server: ServerState) -> Iterator[str]:
    """Digests of the contents on disk, recorded or not."""
    for path in server.artifacts.glob("??/*"):
        with suppress(RequestError):  # not a file of ours
            yield from_hex(path.name)
