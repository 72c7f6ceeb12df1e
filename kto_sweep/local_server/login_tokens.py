"""Signed tokens that let a browser control the server: one in the login link, one in the cookie it sets.

Both have the form `KIND.TIME.NONCE.SIGNATURE`, signed with the server's key. Any process that can read the
key file can create a link without asking the server, and cookies survive a server restart.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote


class TokenKind(StrEnum):
    """Where a token is accepted."""

    LINK = "link"
    COOKIE = "cookie"


LIFETIME = {TokenKind.LINK: 3600.0, TokenKind.COOKIE: 30 * 86_400.0}
"""Seconds until a token of each kind expires."""


@dataclass(frozen=True)
class LoginToken:
    """A token with a valid signature that has not expired."""

    issued_at: float
    """Seconds since the epoch."""
    nonce: str


def create(key: str, kind: TokenKind, now: float) -> str:
    """A new token of this kind; safe in URLs and cookies. `now` is in seconds since the epoch."""
    body = f"{kind}.{now:.3f}.{secrets.token_hex(8)}"
    return f"{body}.{_signature(key, body)}"


def verify(key: str, kind: TokenKind, text: str, now: float) -> LoginToken | None:
    """The token in `text`; None when the signature is wrong, it has expired, or it is of another kind."""
    body, _, signature = text.rpartition(".")
    if not hmac.compare_digest(signature.encode(), _signature(key, body).encode()):
        return None
    signed_kind, _, rest = body.partition(".")
    issued_at, _, nonce = rest.rpartition(".")
    if signed_kind != kind or now - float(issued_at) > LIFETIME[kind]:
        return None
    return LoginToken(float(issued_at), nonce)


def _signature(key: str, body: str) -> str:
    return hmac.new(key.encode(), f"login {body}".encode(), hashlib.sha256).hexdigest()[:32]


def login_link(url: str, key: str, now: float, path: str = "/") -> str:
    """A single-use link that logs a browser in and opens `path` on the server at `url`."""
    target = f"?to={quote(path)}" if path != "/" else ""
    return f"{url}/-/login/{create(key, TokenKind.LINK, now)}{target}"
