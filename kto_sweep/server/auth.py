"""What a client may do: all with the API key; a browser reads pages and controls sweeps after a login.

A command with the key prints a login link, which is a page's address with a token that works once; it sets a
cookie. A server that is open on loopback (`serve --open`) also lets in browsers of its own machine without a
login. The API key never appears in a URL.
"""

import base64
import hmac
import ipaddress
import secrets
from urllib.parse import quote, urlencode

from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    BaseUser,
    SimpleUser,
    UnauthenticatedUser,
)
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response

from kto_sweep.errors import UsageError
from kto_sweep.local_server import login_tokens
from kto_sweep.local_server.keys import home_id
from kto_sweep.server.responses import error
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store import login_links
from kto_sweep.sweep.ref import SweepRef, parse_ref

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
FORWARDED = frozenset({"forwarded", "via", "x-real-ip", "x-original-host"})
"""Headers of a request that came through a proxy, besides X-Forwarded-*."""
SPECULATIVE = frozenset({"sec-purpose", "purpose", "x-purpose", "x-moz"})
"""Headers of requests without a click: browsers prefetch, prerender or draw a preview."""
CSRF_HEADER = "x-kto-sweep-csrf"
LOGIN_COMMAND = "kto-sweep serve --login"
"""Prints a login link to the list of sweeps."""
SESSION_SECONDS = 30 * 86_400
"""Seconds until a login expires."""

READ, CHANGE = "read", "change"
"""What a browser may do: see pages, their data and files; control sweeps."""


class ApiKey(AuthenticationBackend):
    """Basic authentication as wandb sends it: the user `api` with the API key as password."""

    def __init__(self, key: str) -> None:
        self._key = key

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser]:
        """The user `api`. Raises AuthenticationError."""
        if not _has_key(conn, self._key):
            raise AuthenticationError("invalid API key")
        return AuthCredentials(), SimpleUser("api")


def _has_key(connection: HTTPConnection, key: str) -> bool:
    scheme, _, encoded = connection.headers.get("authorization", "").partition(" ")
    try:
        sent = base64.b64decode(encoded) if scheme.lower() == "basic" else b""
    except ValueError:
        sent = b""
    return hmac.compare_digest(sent, f"api:{key}".encode())


def ask_for_key(connection: HTTPConnection, problem: Exception) -> Response:
    """Response to a request without the API key."""
    return error(401, str(problem), {"www-authenticate": 'Basic realm="kto-sweep"'})


class Visitor(SimpleUser):
    """Who may read pages; `csrf` is the token that a change needs, None for a client with the key."""

    def __init__(self, name: str, csrf: str | None) -> None:
        super().__init__(name)
        self.csrf = csrf


class BrowserLogin(AuthenticationBackend):
    """What a browser's session allows, or, on an open server, its address; the key allows to read."""

    def __init__(self, key: str, *, open_on_loopback: bool) -> None:
        self._key = key
        self._open_csrf = secrets.token_hex(16) if open_on_loopback else None

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser]:
        """The scopes of a browser."""
        # Not CHANGE: a browser that has once asked for the key sends it with requests of other sites, too.
        if _has_key(conn, self._key):
            return AuthCredentials([READ]), Visitor("api", None)
        csrf = conn.session.get("csrf")
        if csrf is None and self._open_csrf is not None and _is_on_this_machine(conn):
            csrf = self._open_csrf
        if csrf is None:
            return AuthCredentials(), UnauthenticatedUser()
        change = [CHANGE] if _is_from_own_page(conn, csrf) else []
        return AuthCredentials([READ, *change]), Visitor("owner", csrf)


def browser_access(server: ServerState, *, https: bool, open_on_loopback: bool) -> list[Middleware]:
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
            # Not strict: a link to a page in a chat or in a terminal that is a web page would ask for a login
            # again. No GET changes anything, and a change needs the CSRF token.
            same_site="lax",
            https_only=https,
        ),
        Middleware(
            AuthenticationMiddleware, backend=BrowserLogin(server.key, open_on_loopback=open_on_loopback)
        ),
    ]


async def log_in(request: Request, server: ServerState) -> bool:
    """Whether the request's login link is valid and was not used before; starts the browser's session.

    A GET uses the link, because it is what a click on it sends. A preview asks with HEAD, and a browser that
    loads a page in advance says so; neither uses it.
    """
    is_click = request.method == "GET" and SPECULATIVE.isdisjoint(request.headers)
    now = server.now()
    token = login_tokens.verify(server.key, request.query_params[login_tokens.PARAMETER], now)
    if token is None or not is_click:
        return False
    nonce, expires = token.nonce, token.expires
    if not await run_in_threadpool(server.database.write, lambda c: login_links.use(c, nonce, expires, now)):
        return False
    request.session.setdefault("csrf", secrets.token_hex(16))  # other tabs keep the token that they have
    return True


def without_token(request: Request) -> Response:
    """Redirect to the address of a login link without its token, which stays out of history and Referer."""
    query = [item for item in request.query_params.multi_items() if item[0] != login_tokens.PARAMETER]
    # The path of a page begins with one slash; quoted, a backslash after it cannot lead to another host.
    address = quote(request.scope["path"]) + (f"?{urlencode(query)}" if query else "")
    headers = {"cache-control": "no-store", "referrer-policy": "no-referrer"}
    return RedirectResponse(address, 303, headers)


def how_to_log_in(request: Request) -> tuple[str, str]:
    """A sentence for a browser without a login, and the command that prints a link to the page."""
    names = request.path_params
    command = LOGIN_COMMAND
    if "sweep" in names:
        try:  # anyone may make an address: only a name that is one becomes part of a command
            parse_ref("/".join(names[part] for part in ("entity", "project", "sweep")))
            command = f"kto-sweep view {SweepRef(names['entity'], names['project'], names['sweep']).argument}"
        except UsageError:
            pass
    what = (
        "This link was used before or has expired. For a new one"
        if login_tokens.PARAMETER in request.query_params
        else "Log in to see this page. For a link that logs this browser in"
    )
    return f"{what}, run on the server's machine, as its user:", command


def _is_from_own_page(connection: HTTPConnection, csrf: str) -> bool:
    """Whether a logged-in page of this server sent the request."""
    sent = connection.headers.get(CSRF_HEADER, "")
    own = f"{connection.url.scheme}://{connection.headers.get('host', '')}"
    return hmac.compare_digest(sent.encode(), csrf.encode()) and connection.headers.get("origin", own) == own


def _is_on_this_machine(connection: HTTPConnection) -> bool:
    """Whether a browser on this machine sent the request, without a proxy, to a loopback host name.

    Any other host name may be DNS rebinding: a foreign page whose domain resolves to 127.0.0.1.
    """
    peer = connection.client.host if connection.client else ""
    try:
        is_loopback = ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False
    # A reverse proxy on this machine forwards requests from the network. It says so in a header, or, as nginx
    # without further settings, speaks HTTP/1.0, which no browser does.
    is_direct = connection.scope.get("http_version") != "1.0" and not any(
        name in FORWARDED or name.startswith("x-forwarded") for name in connection.headers
    )
    return is_loopback and is_direct and connection.url.hostname in LOOPBACK_NAMES
