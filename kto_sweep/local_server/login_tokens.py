"""Signed proofs of who may control the server from a browser: the login link and the cookie that follows it.

Both are `PURPOSE.TIME.NONCE.SIGNATURE` under the server's key, so that whoever can read the key file can make
a link without asking the server, and a cookie survives a restart.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote


class Purpose(StrEnum):
    """What a proof is good for."""

    LINK = "link"
    COOKIE = "cookie"


LIFETIME = {Purpose.LINK: 3600.0, Purpose.COOKIE: 30 * 86_400.0}
"""Seconds for which a proof holds."""


@dataclass(frozen=True)
class Proof:
    """A proof whose signature and age are right."""

    made: float
    """Seconds since the epoch."""
    nonce: str


def make(key: str, purpose: Purpose, now: float) -> str:
    """A new proof; safe in a URL and in a cookie."""
    body = f"{purpose}.{now:.3f}.{secrets.token_hex(8)}"
    return f"{body}.{_signature(key, body)}"


def read(key: str, purpose: Purpose, text: str, now: float) -> Proof | None:
    """What the proof says; None when it is forged, too old, or for something else."""
    body, _, signature = text.rpartition(".")
    if not hmac.compare_digest(signature.encode(), _signature(key, body).encode()):
        return None
    kind, _, rest = body.partition(".")
    made, _, nonce = rest.rpartition(".")
    if kind != purpose or now - float(made) > LIFETIME[purpose]:
        return None
    return Proof(float(made), nonce)


def _signature(key: str, body: str) -> str:
    return hmac.new(key.encode(), f"login {body}".encode(), hashlib.sha256).hexdigest()[:32]


def login_link(url: str, key: str, now: float, path: str = "/") -> str:
    """A link that logs a browser in once and leads it to `path` of the server at `url`."""
    target = f"?to={quote(path)}" if path != "/" else ""
    return f"{url}/-/login/{make(key, Purpose.LINK, now)}{target}"
