"""What a client may do: all with the API key; in a browser, read on this machine and control after a login.

A browser on the server's machine can read without logging in. Controlling sweeps, downloading files, and
reading from another machine need a cookie, which a single-use login link sets. The API key never appears in a
URL.
"""

import base64
import hmac
import ipaddress
import secrets
import threading

from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    BaseUser,
    SimpleUser,
    UnauthenticatedUser,
)
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from kto_sweep.local_server import login_tokens
from kto_sweep.local_server.keys import home_id
from kto_sweep.server.responses import error, html
from kto_sweep.server.server_state import ServerState

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
CSRF_HEADER = "x-kto-sweep-csrf"
LOGIN_COMMAND = "kto-sweep serve --login"
"""Prints a new login link."""
LOGIN_POLICY = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'"
SESSION_SECONDS = 30 * 86_400
"""Seconds until a login expires."""

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


class BrowserLogin(AuthenticationBackend):
    """What a browser's session or address allows."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser]:
        """The scopes of a logged-in browser, else those of its address."""
        csrf = conn.session.get("csrf")
        if csrf is None:
            return AuthCredentials([READ] if _is_local(conn) else []), UnauthenticatedUser()
        change = [CHANGE] if _is_from_own_page(conn, csrf) else []
        return AuthCredentials([READ, DOWNLOAD, *change]), SimpleUser("owner")


def browser_access(server: ServerState, *, https: bool) -> list[Middleware]:
    """The middleware of a browser's routes: a signed session cookie, and what it allows.

    The cookie survives a restart of the server, because its key does.
    """
    return [
        Middleware(
            SessionMiddleware,
            secret_key=server.key,
            # Browsers share cookies between ports, so servers on one machine need different cookie names.
            session_cookie=f"kto_sweep_{home_id(server.key)}",
            max_age=SESSION_SECONDS,
            same_site="strict",
            https_only=https,
        ),
        Middleware(AuthenticationMiddleware, backend=BrowserLogin()),
    ]


class LoginLinks:
    """Redeems login links, each once."""

    def __init__(self, server: ServerState) -> None:
        self._server = server
        self._started_at = int(server.now())
        """Tokens know whole seconds."""
        self._used_nonces: dict[str, float] = {}
        self._lock = threading.Lock()

    def redeem(self, text: str) -> bool:
        """Whether the link's token is valid and was not used before."""
        token = login_tokens.verify(self._server.key, text)
        # Used links are remembered in memory only, so links issued before this server started are rejected.
        if token is None or token.issued_at < self._started_at:
            return False
        now = self._server.now()
        with self._lock:
            self._used_nonces = {
                nonce: issued_at
                for nonce, issued_at in self._used_nonces.items()
                if now - issued_at <= login_tokens.LIFETIME
            }
            if token.nonce in self._used_nonces:
                return False
            self._used_nonces[token.nonce] = token.issued_at
        return True

    async def respond(self, request: Request) -> Response:
        """Response to a login link: starts a session and opens the page, or says how to get a new link."""
        if not self.redeem(request.path_params["token"]):
            return html("login.html", LOGIN_POLICY, 403, target=None, login_command=LOGIN_COMMAND)
        request.session["csrf"] = secrets.token_hex(16)
        target = request.query_params.get("to", "/")
        if not target.startswith("/") or target.startswith("//") or "\\" in target:
            target = "/"
        # Not a redirect: when the link is clicked on another site, a SameSite=Strict cookie is not sent with
        # it.
        return html("login.html", LOGIN_POLICY, target=target)


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
