"""Tokens of login links, signed with the server's key.

Any process that can read the key file can create a link without asking the server.
"""

import secrets
from dataclasses import dataclass
from urllib.parse import quote

from itsdangerous import BadSignature, URLSafeTimedSerializer

LIFETIME = 3600
"""Seconds until a link expires."""


@dataclass(frozen=True)
class LoginToken:
    """A token with a valid signature that has not expired."""

    issued_at: float
    """Seconds since the epoch, without fraction."""
    nonce: str


def _signer(key: str) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(key, salt="login link")


def create(key: str) -> str:
    """A new token."""
    return str(_signer(key).dumps(secrets.token_hex(8)))


def verify(key: str, text: str) -> LoginToken | None:
    """The token in `text`; None when the signature is wrong or it has expired."""
    try:
        nonce, issued_at = _signer(key).loads(text, max_age=LIFETIME, return_timestamp=True)
    except BadSignature:
        return None
    return LoginToken(issued_at.timestamp(), nonce)


def login_link(url: str, key: str, path: str = "/") -> str:
    """A single-use link that logs a browser in and opens `path` on the server at `url`."""
    target = f"?to={quote(path)}" if path != "/" else ""
    return f"{url}/-/login/{create(key)}{target}"
