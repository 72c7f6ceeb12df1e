"""Tokens in URLs of files: each permits one use of one file for a week, in place of the API key.

wandb sends no API key when it uploads to or downloads from a URL that the server gave it.
"""

from typing import Any

from itsdangerous import BadSignature, URLSafeTimedSerializer

from kto_sweep.server.errors import NotFoundError
from kto_sweep.server.server_state import ServerState

URL_SECONDS = 7 * 86_400
"""Seconds until a URL expires. wandb asks for one before each transfer; a notebook may hold one for days."""


def sign(server: ServerState, use: str, value: Any) -> str:
    """A token that permits `use` of what the JSON value identifies."""
    return _serializer(server, use).dumps(value)


def verify(server: ServerState, use: str, token: str) -> Any:
    """The value of a token for this use. Raises NotFoundError for a wrong or expired token."""
    try:
        value, signed_at = _serializer(server, use).loads(token, return_timestamp=True)
    except BadSignature as problem:
        raise NotFoundError("no such file") from problem
    # Not max_age: it also rejects a URL from before the clock was set back, and wandb would lose that file.
    if server.now() - signed_at.timestamp() > URL_SECONDS:
        raise NotFoundError("the file's URL has expired")
    return value


def _serializer(server: ServerState, use: str) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(server.key, salt=use)
