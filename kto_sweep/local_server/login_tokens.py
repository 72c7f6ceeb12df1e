"""Login links: a page's address with a token that logs a browser in once, signed with the server's key.

Any process that has the key can make a link without asking the server, also on another box.
"""

import secrets
from dataclasses import dataclass
from typing import IO

from itsdangerous import BadSignature, TimestampSigner

PARAMETER = "login"
"""The parameter in a page's address that holds the token."""
LIFETIME = 86_400
"""Seconds until a link expires: a day, so that the one of last night's agent opens in the morning."""


@dataclass(frozen=True)
class LoginToken:
    """A token with a valid signature that has not expired."""

    nonce: str
    expires: float
    """Seconds since the epoch."""


def _signer(key: str) -> TimestampSigner:
    return TimestampSigner(key, salt="login link")


def create(key: str) -> str:
    """A new token."""
    return _signer(key).sign(secrets.token_urlsafe(12)).decode()


def verify(key: str, text: str, now: float) -> LoginToken | None:
    """The token in `text`; None when the signature is wrong or it has expired.

    `now`: seconds since the epoch.
    """
    try:
        nonce, signed = _signer(key).unsign(text, return_timestamp=True)
    except BadSignature:
        return None
    issued = signed.timestamp()
    # The clock of another box that made the link may be ahead, so a token of the future is valid too.
    return LoginToken(nonce.decode(), issued + LIFETIME) if abs(now - issued) <= LIFETIME else None


def login_link(url: str, key: str) -> str:
    """The address of a page, without a query, as a link that works once and logs the browser in."""
    return f"{url}?{PARAMETER}={create(key)}"


def page_link(url: str, key: str, stream: IO[str]) -> str:
    """The address of an embedded server's page to print to `stream`: on a terminal, as a login link.

    In a file, a pipe or a log others may read it, so there it has no token.
    """
    return login_link(url, key) if stream.isatty() else url
