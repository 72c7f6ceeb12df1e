"""Pages for people: plain tables of sweeps and runs. No script, nothing from elsewhere, every text escaped."""

from collections.abc import Awaitable, Callable
from html import escape
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from kto_sweep.server.backend import Backend

Handler = Callable[[Request], Awaitable[Response]]


def routes(backend: Backend, hosts: frozenset[str], guarded: Callable[[Handler], Handler]) -> list[Route]:
    """The routes of the pages."""
    return []
