"""Reads request bodies with a deadline and a size limit, decompresses gzip, parses JSON."""

import asyncio
import json
import zlib
from collections.abc import AsyncIterator

from starlette.requests import Request

from kto_sweep.server.errors import BodyTooLarge, BodyTooSlow, RequestError

STALL_SECONDS = 75
"""Seconds in which at least one more byte of a body must arrive. The whole body may take any time."""


async def chunks(request: Request) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises BodyTooSlow when nothing arrives for `STALL_SECONDS`."""
    stream = request.stream()

    async def following() -> bytes | None:
        return await anext(stream, None)

    while True:
        # Not asyncio.timeout, which after a pause of this process fires although data has arrived meanwhile:
        # wait() looks at the task once more when its time is over.
        receiving = asyncio.create_task(following())
        try:
            done, _ = await asyncio.wait([receiving], timeout=STALL_SECONDS)
        finally:
            receiving.cancel()
        if not done:
            raise BodyTooSlow
        chunk = receiving.result()
        if chunk is None:
            return
        yield chunk


async def read(request: Request, max_bytes: int) -> bytes:
    """The decompressed body.

    Raises BodyTooLarge above `max_bytes` (compressed or not), BodyTooSlow, RequestError for invalid gzip.
    """
    parts, size = [], 0
    async for chunk in chunks(request):
        size += len(chunk)
        if size > max_bytes:
            raise BodyTooLarge
        parts.append(chunk)
    body = b"".join(parts)
    return _gunzip(body, max_bytes) if request.headers.get("content-encoding") == "gzip" else body


def announced_size(request: Request) -> int:
    """Bytes that the request says it has; 0 if it does not say."""
    return int(request.headers.get("content-length", 0))


def _gunzip(body: bytes, max_bytes: int) -> bytes:
    decompressor = zlib.decompressobj(wbits=31)
    try:
        # One byte over the limit is enough to detect a too large body without decompressing all of it.
        decompressed = decompressor.decompress(body, max_bytes + 1)
    except zlib.error as problem:
        raise RequestError(f"the body is not gzip: {problem}") from problem
    if len(decompressed) > max_bytes:
        raise BodyTooLarge
    return decompressed


def parse_json(body: bytes) -> object:
    """The JSON value in a body. Raises RequestError."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as problem:
        raise RequestError(f"the body is not JSON: {problem}") from problem
