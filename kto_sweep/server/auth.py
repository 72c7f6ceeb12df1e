"""What a browser may do: read from this machine, control after a login link, or nothing.

A browser on the server's machine can read without logging in. Controlling sweeps, downloading files, and
reading from another machine need a cookie, which a single-use login link sets. The API key never appears in a
URL.
"""

import hmac
import ipaddress
import threading
from dataclasses import dataclass
from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from kto_sweep.local_server import login_tokens
from kto_sweep.local_server.keys import home_id
from kto_sweep.local_server.login_tokens import LIFETIME, TokenKind
from kto_sweep.server.server_state import ServerState

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
CSRF_HEADER = "x-kto-sweep-csrf"
LOGIN_COMMAND = "kto-sweep serve --login"
"""Prints a new login link."""


@dataclass(frozen=True)
class Access:
    """What the sender of a request may do."""

    can_read: bool
    can_control: bool
    csrf: str | None
    """Token that a page must send with every change; None without permission to change anything."""


class Auth:
    """Checks login cookies and redeems login links, each once."""

    def __init__(self, server: ServerState) -> None:
        self._server = server
        self._cookie = f"kto_sweep_{home_id(server.key)}"
        """Browsers share cookies between ports, so servers on one machine need different cookie names."""
        self._started_at = server.now()
        self._used_nonces: dict[str, float] = {}
        self._lock = threading.Lock()

    def access(self, request: Request) -> Access:
        """The access that the request's cookie or address grants."""
        cookie = request.cookies.get(self._cookie, "")
        token = login_tokens.verify(self._server.key, TokenKind.COOKIE, cookie, self._server.now())
        if token is not None:
            return Access(True, True, self._server.sign(f"csrf {token.nonce}"))
        return Access(_is_local(request), False, None)

    def allows_change(self, request: Request) -> bool:
        """Whether a logged-in page of this server sent the request (CSRF token and origin match)."""
        access = self.access(request)
        origin = request.headers.get("origin")
        own = f"{request.url.scheme}://{request.headers.get('host', '')}"
        sent = request.headers.get(CSRF_HEADER, "").encode()
        return (
            access.csrf is not None
            and hmac.compare_digest(sent, access.csrf.encode())
            and origin in (None, own)
        )

    def redeem(self, link_token: str) -> str | None:
        """A cookie value for a link's token; None when the token is invalid, expired or already used."""
        now = self._server.now()
        token = login_tokens.verify(self._server.key, TokenKind.LINK, link_token, now)
        # Used links are remembered in memory only, so links issued before this server started are rejected.
        if token is None or token.issued_at < self._started_at:
            return None
        with self._lock:
            self._used_nonces = {
                nonce: issued_at
                for nonce, issued_at in self._used_nonces.items()
                if now - issued_at < LIFETIME[TokenKind.LINK]
            }
            if token.nonce in self._used_nonces:
                return None
            self._used_nonces[token.nonce] = token.issued_at
        return login_tokens.create(self._server.key, TokenKind.COOKIE, now)

    def login(self, request: Request) -> Response:
        """Response to a login link: sets the cookie and opens the page, or says how to get a new link."""
        cookie = self.redeem(request.path_params["token"])
        if cookie is None:
            text = f"This login link is used or expired. On the server's machine, run: {LOGIN_COMMAND}"
            return HTMLResponse(_page("Log in", text, ""), 403, headers=HEADERS)
        target = request.query_params.get("to", "/")
        if not target.startswith("/") or target.startswith("//") or "\\" in target:
            target = "/"
        # Not a redirect: when the link is clicked on another site, a SameSite=Strict cookie is not sent with
        # it.
        refresh = f'<meta http-equiv="refresh" content="0; url={escape(target)}">'
        response = HTMLResponse(_page("Logged in", "Logged in. Opening the page.", refresh), headers=HEADERS)
        response.set_cookie(
            self._cookie,
            cookie,
            max_age=int(LIFETIME[TokenKind.COOKIE]),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response


HEADERS = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def _page(title: str, text: str, head: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{head}<title>{title}</title>'
        '<meta name="color-scheme" content="light dark">'
        f'<meta name="viewport" content="width=device-width"></head><body><p>{escape(text)}</p></body></html>'
    )


def _is_local(request: Request) -> bool:
    """Whether a browser on this machine asked for a loopback host name.

    Any other host name may be DNS rebinding: a foreign page whose domain resolves to 127.0.0.1.
    """
    peer = request.client.host if request.client else ""
    try:
        is_loopback = ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False
    # A reverse proxy on this machine forwards requests from the network and says so in these headers.
    is_direct = not {"forwarded", "x-forwarded-for"} & set(request.headers)
    return is_loopback and is_direct and request.url.hostname in LOOPBACK_NAMES
