"""Writes a request's body to disk: in blocks, outside the event loop, synced, hashed on the way."""

import base64
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from kto_sweep.disk import MIN_FREE_BYTES, free_bytes
from kto_sweep.server.errors import BodyTooLarge, DiskFull

BLOCK = 2**18
"""Bytes that are written, hashed and later verified together."""
CHECKSUM_BYTES = 16
SMALL_UPLOAD = 2**20
"""Bytes of an upload that is let in while the disk takes it: a run's own files are small, and wandb repeats a
refused upload for a quarter of an hour before the run can end."""


@dataclass(frozen=True)
class Content:
    """What was received."""

    size: int
    """Bytes."""
    md5: str
    """Base64, as on W&B."""
    checksums: bytes
    """`CHECKSUM_BYTES` for each block of `BLOCK` bytes; the last block may be shorter."""


class Hasher:
    """The digest and the block checksums of a content, fed block by block."""

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._checksums = bytearray()
        self._size = 0

    def add(self, block: bytes | bytearray) -> None:
        """Adds the next block; all but the last must have `BLOCK` bytes."""
        self._md5.update(block)
        self._checksums += checksum(block)
        self._size += len(block)

    def content(self) -> Content:
        """What was added so far."""
        return Content(self._size, base64.b64encode(self._md5.digest()).decode(), bytes(self._checksums))


def checksum(block: bytes | bytearray) -> bytes:
    """The checksum of one block."""
    return hashlib.blake2b(block, digest_size=CHECKSUM_BYTES).digest()


def require_space(folder: Path, size: int) -> None:
    """Raises DiskFull unless `size` bytes fit on the folder's disk, beside what the server itself needs."""
    free = free_bytes(folder)
    if size > SMALL_UPLOAD and free - size < MIN_FREE_BYTES:
        raise DiskFull(
            f"the server's disk has {free >> 20} MiB free; the upload needs {size >> 20} MiB,"
            f" and {MIN_FREE_BYTES >> 20} MiB must stay free"
        )


async def receive(
    path: Path, chunks: AsyncIterator[bytes], *, max_bytes: int | None = None, offset: int = 0
) -> Content:
    """Writes the chunks into the file from `offset` on, and syncs it. Raises BodyTooLarge, OSError."""
    hasher, buffer, size = Hasher(), bytearray(), 0
    # Not truncated: parts of one file are written at their offsets, several at once.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)

    def write(block: bytes) -> None:
        hasher.add(block)
        position = offset + size
        while block:
            written = os.pwrite(descriptor, block, position)
            block, position = block[written:], position + written

    try:
        async for chunk in chunks:
            buffer += chunk
            if max_bytes is not None and size + len(buffer) > max_bytes:
                raise BodyTooLarge
            while len(buffer) >= BLOCK:
                block = bytes(buffer[:BLOCK])
                del buffer[:BLOCK]
                await run_in_threadpool(write, block)
                size += BLOCK
        if buffer:
            await run_in_threadpool(write, bytes(buffer))
        await run_in_threadpool(os.fsync, descriptor)
    finally:
        os.close(descriptor)
    return hasher.content()
