"""Request bodies, read with a bound on their size, unpacked when they are compressed."""

import zlib

from starlette.requests import Request

from kto_sweep.server.errors import RequestError
from kto_sweep.server.uploads import BodyTooLarge


async def read(request: Request, largest: int) -> bytes:
    """The body, unpacked.

    Raises BodyTooLarge beyond `largest` bytes (packed or not), RequestError for broken gzip.
    """
    parts, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > largest:
            raise BodyTooLarge
        parts.append(chunk)
    body = b"".join(parts)
    return _unzip(body, largest) if request.headers.get("content-encoding") == "gzip" else body


def _unzip(body: bytes, largest: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        # One byte more than allowed is enough to know, however much would follow.
        unpacked = unpacker.decompress(body, largest + 1)
    except zlib.error as problem:
        raise RequestError(f"the body is not gzip: {problem}") from problem
    if len(unpacked) > largest:
        raise BodyTooLarge
    return unpacked
