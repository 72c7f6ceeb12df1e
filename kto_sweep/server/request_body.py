"""Reads request bodies with a size limit, decompresses gzip, parses JSON."""

import json
import zlib

from starlette.requests import Request

from kto_sweep.server.errors import BodyTooLarge, RequestError


async def read(request: Request, max_bytes: int) -> bytes:
    """The decompressed body.

    Raises BodyTooLarge above `max_bytes` (compressed or not), RequestError for invalid gzip.
    """
    parts, size = [], 0
    async for chunk in request.stream():
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
