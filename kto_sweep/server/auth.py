"""Who a browser is: a reader on this box, somebody who came by a login link, or nobody.

A browser on the server's own box may look, as it always could. To control a sweep, to download files, and to
look from another machine takes a cookie, and the cookie comes from a link that works once. The API key is in
no URL.
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
from kto_sweep.local_server.login_tokens import LIFETIME, Purpose
from kto_sweep.server.backend import Backend

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
CSRF_HEADER = "x-kto-sweep-csrf"
HOW = "kto-sweep serve --login"
"""What prints a new link."""


@dataclass(frozen=True)
class Visitor:
    """What the sender of a request may do."""

    may_look: bool
    may_control: bool
    csrf: str | None
    """What a page must send along with every change; None for those who may not change anything."""


class Gate:
    """Knows visitors by their cookies, and which links have been used."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._cookie = f"kto_sweep_{home_id(backend.key)}"
        """Cookies do not know ports: two servers on one box must not take each other's."""
        self._opened = backend.now()
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()

    def visitor(self, request: Request) -> Visitor:
        """Who sent the request."""
        cookie = request.cookies.get(self._cookie, "")
        proof = login_tokens.read(self._backend.key, Purpose.COOKIE, cookie, self._backend.now())
        if proof is not None:
            return Visitor(True, True, self._backend.sign(f"csrf {proof.nonce}"))
        return Visitor(_is_on_this_box(request), False, None)

    def allows_change(self, request: Request) -> bool:
        """Whether the request is a change that one of our own pages asks for in the name of its visitor."""
        visitor = self.visitor(request)
        origin = request.headers.get("origin")
        own = f"{request.url.scheme}://{request.headers.get('host', '')}"
        sent = request.headers.get(CSRF_HEADER, "").encode()
        return (
            visitor.csrf is not None
            and hmac.compare_digest(sent, visitor.csrf.encode())
            and origin in (None, own)
        )

    def enter(self, token: str) -> str | None:
        """A cookie's value for a link's token; None when it is forged, too old or used."""
        now = self._backend.now()
        proof = login_tokens.read(self._backend.key, Purpose.LINK, token, now)
        # Links that were used before this server came up are forgotten: none from that time is taken.
        if proof is None or proof.made < self._opened:
            return None
        with self._lock:
            self._used = {
                nonce: made for nonce, made in self._used.items() if now - made < LIFETIME[Purpose.LINK]
            }
            if proof.nonce in self._used:
                return None
            self._used[proof.nonce] = proof.made
        return login_tokens.make(self._backend.key, Purpose.COOKIE, now)

    def answer(self, request: Request) -> Response:
        """The answer to a login link: the cookie and the way to the page, or what to type for a new link."""
        cookie = self.enter(request.path_params["token"])
        if cookie is None:
            text = f"This login link has been used or is too old. Type on the server's box: {HOW}"
            return HTMLResponse(_page("Log in", text, ""), 403, headers=HEADERS)
        target = request.query_params.get("to", "/")
        if not target.startswith("/") or target.startswith("//") or "\\" in target:
            target = "/"
        # Not a redirect: after a click in another site's page a strict cookie would not go along with one.
        refresh = f'<meta http-equiv="refresh" content="0; url={escape(target)}">'
        response = HTMLResponse(_page("Logged in", "One moment.", refresh), headers=HEADERS)
        response.set_cookie(
            self._cookie,
            cookie,
            max_age=int(LIFETIME[Purpose.COOKIE]),
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


def _is_on_this_box(request: Request) -> bool:
    """Whether a browser on this box asked for a name that only this box can mean.

    Any other name may be a foreign page that had its own name point here to read the answer.
    """
    peer = request.client.host if request.client else ""
    try:
        is_loopback = ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False
    # A proxy on this box that serves the network says for whom it asks.
    is_direct = not {"forwarded", "x-forwarded-for"} & set(request.headers)
    return is_loopback and is_direct and request.url.hostname in LOOPBACK_NAMES
