"""What a client may do: all with the API key; in a browser, read on this machine and control after a login.

A browser on the server's machine can read without logging in. Controlling sweeps, downloading files, and
reading from another machine need a cookie, which a single-use login link sets. The API key never appears in a
URL.
"""

import base64
import hmac
import ipaddress
import threading
from html import escape

from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    SimpleUser,
    UnauthenticatedUser,
)
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, Response

from kto_sweep.local_server import login_tokens
from kto_sweep.local_server.keys import home_id
from kto_sweep.local_server.login_tokens import LIFETIME, TokenKind
from kto_sweep.server.responses import error
from kto_sweep.server.server_state import ServerState

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
CSRF_HEADER = "x-kto-sweep-csrf"
LOGIN_COMMAND = "kto-sweep serve --login"
"""Prints a new login link."""

READ, DOWNLOAD, CHANGE = "read", "download", "change"
"""What a browser may do: see pages and their data, download files, control sweeps."""


class ApiKey(AuthenticationBackend):
    """Basic authentication as wandb sends it: the user `api` with the API key as password."""

    def __init__(self, key: str) -> None:
        self._expected = f"api:{key}".encode()

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser]:
        """The user `api`. Raises AuthenticationError."""
        scheme, _, encoded = conn.headers.get("authorization", "").partition(" ")
        try:
            sent = base64.b64decode(encoded) if scheme.lower() == "basic" else b""
        except ValueError:
            sent = b""
        if not hmac.compare_digest(sent, self._expected):
            raise AuthenticationError("invalid API key")
        return AuthCredentials(), SimpleUser("api")


def ask_for_key(connection: HTTPConnection, problem: Exception) -> Response:
    """Response to a request without the API key."""
    return error(401, str(problem), {"www-authenticate": 'Basic realm="kto-sweep"'})


class LoggedInUser(SimpleUser):
    """A browser with a valid login cookie."""

    def __init__(self, csrf: str) -> None:
        super().__init__("owner")
        self.csrf = csrf
        """Token that a page must send with every change."""


class BrowserLogin(AuthenticationBackend):
    """Checks login cookies and redeems login links, each once."""

    def __init__(self, server: ServerState) -> None:
        self._server = server
        self._cookie = f"kto_sweep_{home_id(server.key)}"
        """Browsers share cookies between ports, so servers on one machine need different cookie names."""
        self._started_at = server.now()
        self._used_nonces: dict[str, float] = {}
        self._lock = threading.Lock()

    async def authenticate(
        self, conn: HTTPConnection
    ) -> tuple[AuthCredentials, LoggedInUser | UnauthenticatedUser]:
        """What the request's cookie or address allows."""
        cookie = conn.cookies.get(self._cookie, "")
        token = login_tokens.verify(self._server.key, TokenKind.COOKIE, cookie, self._server.now())
        if token is None:
            return AuthCredentials([READ] if _is_local(conn) else []), UnauthenticatedUser()
        user = LoggedInUser(self._server.sign(f"csrf {token.nonce}"))
        change = [CHANGE] if _is_from_own_page(conn, user.csrf) else []
        return AuthCredentials([READ, DOWNLOAD, *change]), user

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

    async def respond(self, request: Request) -> Response:
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


def _is_from_own_page(connection: HTTPConnection, csrf: str) -> bool:
    """Whether a logged-in page of this server sent the request."""
    sent = connection.headers.get(CSRF_HEADER, "")
    own = f"{connection.url.scheme}://{connection.headers.get('host', '')}"
    return hmac.compare_digest(sent.encode(), csrf.encode()) and connection.headers.get("origin", own) == own


def _is_local(connection: HTTPConnection) -> bool:
    """Whether a browser on this machine asked for a loopback host name.

    Any other host name may be DNS rebinding: a foreign page whose domain resolves to 127.0.0.1.
    """
    peer = connection.client.host if connection.client else ""
    try:
        is_loopback = ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False
    # A reverse proxy on this machine forwards requests from the network and says so in these headers.
    is_direct = not {"forwarded", "x-forwarded-for"} & set(connection.headers)
    return is_loopback and is_direct and connection.url.hostname in LOOPBACK_NAMES
