"""The dashboard's routes: pages, their scripts, the data they ask for, and the changes that a person makes.

Pages are empty frames: what stands in them comes as JSON and is put in as text, so that no name of a run can
become part of a page. All of it is under `/-/`, which no entity is called.
"""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from html import escape
from importlib.metadata import version
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from kto_sweep.server import (
    dashboard_actions,
    dashboard_cells,
    dashboard_data,
    dashboard_run,
    request_body,
    uploads,
)
from kto_sweep.server.auth import LOGIN_COMMAND, Auth
from kto_sweep.server.columns import ColumnCache
from kto_sweep.server.dashboard_data import ChangeTracker, Row
from kto_sweep.server.dashboard_importance import ImportanceCache
from kto_sweep.server.errors import NotFoundError, RequestError
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store import files
from kto_sweep.server.sweep_rules import read_rules

STATIC = Path(__file__).parent / "static"
MAX_CHANGE = 100_000
"""Bytes of one change at most."""
MAX_CURVES = 400
"""Runs of one answer at most."""
MAX_POINTS = 4000
"""Points of one curve at most."""

POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    # plotly makes an empty style element (hence the digest of nothing) and sets style attributes.
    "style-src 'self'; style-src-elem 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; "
    "style-src-attr 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

Handler = Callable[[Request], Awaitable[Response]]


def routes(server: ServerState, guarded: Callable[[Handler], Handler]) -> list[Route]:
    """The routes of the dashboard and of the login."""
    api = _Dashboard(server)

    def get(path: str, handler: Handler) -> Route:
        return Route(path, guarded(handler), methods=["GET"])

    def post(path: str, handler: Handler) -> Route:
        return Route(path, guarded(handler), methods=["POST"])

    return [
        get("/-/login/{token}", api.login),
        get("/-/static/{version}/{name}", api.static),
        get("/-/data/sweeps", api.data(api.all_sweeps)),
        get("/-/data/{entity}/{project}", api.data(api.project)),
        get("/-/data/{entity}/{project}/curves", api.data(api.curves)),
        get("/-/data/{entity}/{project}/sweeps/{sweep}", api.data(api.sweep)),
        get("/-/data/{entity}/{project}/sweeps/{sweep}/cells", api.data(api.cells)),
        get("/-/data/{entity}/{project}/sweeps/{sweep}/importance", api.data(api.importance)),
        get("/-/data/{entity}/{project}/runs/{run}", api.data(api.run)),
        get("/-/data/{entity}/{project}/runs/{run}/console", api.data(api.console)),
        get("/-/data/{entity}/{project}/runs/{run}/system", api.data(api.system)),
        get("/-/file/{file:int}", api.file),
        post("/-/do/{entity}/{project}/sweeps/{sweep}", api.change_sweep),
        post("/-/do/{entity}/{project}/runs/{run}", api.change_run),
        get("/", api.page("list", lambda connection, names: None)),
        get("/{entity}/{project}", api.page("list", dashboard_data.project)),
        get("/{entity}/{project}/compare", api.page("compare", dashboard_data.project)),
        get("/{entity}/{project}/sweeps/{sweep}", api.page("sweep", dashboard_data.sweep)),
        get("/{entity}/{project}/runs/{run}", api.page("run", dashboard_data.run)),
    ]


class _Dashboard:
    """The handlers of the dashboard's routes."""

    def __init__(self, server: ServerState) -> None:
        self._server = server
        self._auth = Auth(server)
        self._columns = ColumnCache()
        self._changes = ChangeTracker()
        self._importance = ImportanceCache()

    async def login(self, request: Request) -> Response:
        """What a login link leads to."""
        return self._auth.login(request)

    async def static(self, request: Request) -> Response:
        """A script or a style sheet; its address names its version, so that browsers may keep it."""
        name = request.path_params["name"]
        path = _static_files().get(name)
        if path is None:
            raise NotFoundError(f"there is no {name}")
        headers = {
            "x-content-type-options": "nosniff",
            "cache-control": "private, max-age=31536000, immutable",
        }
        return FileResponse(path, media_type=TYPES.get(path.suffix), headers=headers)

    def page(self, kind: str, find: Callable[[Any, Mapping[str, str]], object]) -> Handler:
        """The frame of a page; `find` raises NotFoundError where there is nothing to show."""

        async def show(request: Request) -> Response:
            access = self._auth.access(request)
            if not access.can_read:
                return HTMLResponse(_frame("locked", access.can_control), 401, headers=HEADERS)
            try:
                await run_in_threadpool(lambda: find(self._server.database.reader(), request.path_params))
            except NotFoundError as problem:
                return HTMLResponse(_frame("gone", access.can_control, str(problem)), 404, headers=HEADERS)
            return HTMLResponse(_frame(kind, access.can_control), headers=HEADERS)

        return show

    def data(self, answer: Callable[[Request], Row | None]) -> Handler:
        """A handler that sends what `answer` finds as JSON, and 204 where nothing has changed."""

        async def respond(request: Request) -> Response:
            access = self._auth.access(request)
            if not access.can_read:
                return _json({"errors": [{"message": f"log in first: {LOGIN_COMMAND}"}]}, 401)
            found = await run_in_threadpool(answer, request)
            if found is None:
                return Response(status_code=204, headers={"cache-control": "no-store"})
            return _json({**found, "csrf": access.csrf})

        return respond

    def all_sweeps(self, request: Request) -> Row:
        """Every sweep."""
        return dashboard_data.sweep_list(self._server.database.reader(), None)

    def project(self, request: Request) -> Row:
        """One project's sweeps and its runs without a sweep."""
        connection = self._server.database.reader()
        return dashboard_data.sweep_list(connection, dashboard_data.project(connection, request.path_params))

    def sweep(self, request: Request) -> Row | None:
        """A sweep and those of its runs that have changed since the state `since`."""
        connection = self._server.database.reader()
        _, sweep = dashboard_data.sweep(connection, request.path_params)
        facts = dashboard_data.sweep_facts(connection, self._server, sweep)
        return self._changes.since(connection, sweep.id, facts, request.query_params.get("since"))

    def cells(self, request: Request) -> Row:
        """The cells of a sweep's grid."""
        connection = self._server.database.reader()
        owner, sweep = dashboard_data.sweep(connection, request.path_params)
        return {"cells": dashboard_cells.cells(connection, owner, sweep, read_rules(sweep.config))}

    def importance(self, request: Request) -> Row:
        """How much each of a sweep's parameters matters for its metric."""
        connection = self._server.database.reader()
        _, sweep = dashboard_data.sweep(connection, request.path_params)
        return self._importance.of(connection, sweep)

    def curves(self, request: Request) -> Row:
        """The curves of the metrics `key` of the runs `run`, each in at most `points` points."""
        connection = self._server.database.reader()
        project = dashboard_data.project(connection, request.path_params)
        query = request.query_params
        names, keys = query.getlist("run")[:MAX_CURVES], query.getlist("key")
        return dashboard_run.curves(
            connection, self._columns, project, names, keys, _whole(query.get("points"), 400, MAX_POINTS)
        )

    def run(self, request: Request) -> Row | None:
        """All of a run but its curves and its console."""
        connection = self._server.database.reader()
        project, run = dashboard_data.run(connection, request.path_params)
        told = dashboard_run.facts(connection, self._columns, project, run)
        return None if told["tag"] == request.query_params.get("since") else told

    def console(self, request: Request) -> Row:
        """Console lines from number `from` on; without it, the last ones."""
        connection = self._server.database.reader()
        _, run = dashboard_data.run(connection, request.path_params)
        start = request.query_params.get("from")
        return dashboard_run.console(connection, run, None if start is None else _whole(start, 0, 2**53))

    def system(self, request: Request) -> Row:
        """The curves of all system metrics of a run."""
        connection = self._server.database.reader()
        _, run = dashboard_data.run(connection, request.path_params)
        return dashboard_run.system(connection, self._columns, run)

    async def file(self, request: Request) -> Response:
        """A run's file, always as a download: a browser must not run what a client uploaded."""
        if not self._auth.access(request).can_control:
            return _json({"errors": [{"message": f"log in to download files: {LOGIN_COMMAND}"}]}, 403)
        number = request.path_params["file"]
        file = await run_in_threadpool(lambda: files.get(self._server.database.reader(), number))
        if file is None:
            raise NotFoundError("no such file")
        return uploads.download(self._server, file)

    async def change_sweep(self, request: Request) -> Response:
        """Pause, resume, stop or cancel a sweep."""

        def work(wanted: Mapping[str, Any]) -> dashboard_actions.Change:
            _, sweep = dashboard_data.sweep(self._server.database.reader(), request.path_params)
            return dashboard_actions.of_sweep(self._server, sweep, wanted)

        return await self._change(request, work)

    async def change_run(self, request: Request) -> Response:
        """Stop a run, or write tags and notes on it."""

        def work(wanted: Mapping[str, Any]) -> dashboard_actions.Change:
            _, run = dashboard_data.run(self._server.database.reader(), request.path_params)
            return dashboard_actions.of_run(self._server, run, wanted)

        return await self._change(request, work)

    async def _change(
        self, request: Request, work: Callable[[Mapping[str, Any]], dashboard_actions.Change]
    ) -> Response:
        if not self._auth.allows_change(request):
            return _json({"errors": [{"message": f"log in to change anything: {LOGIN_COMMAND}"}]}, 403)
        try:
            wanted = json.loads(await request_body.read(request, MAX_CHANGE))
        except (ValueError, RecursionError) as problem:
            raise RequestError(f"the body is not JSON: {problem}") from problem
        if not isinstance(wanted, dict):
            raise RequestError("the body is not a JSON object")
        change = await run_in_threadpool(work, wanted)
        await run_in_threadpool(self._server.database.write, change)
        return _json({"done": True})


def _whole(text: str | None, otherwise: int, most: int) -> int:
    if text is None:
        return otherwise
    if not text.isdecimal() or len(text) > 18:
        raise RequestError(f"{text!r} is not a whole number")
    return min(int(text), most)


def _json(body: Mapping[str, Any], status: int = 200) -> Response:
    # Numbers are finite by now; a stray NaN would be no JSON.
    text = json.dumps(body, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
    return Response(text.encode(errors="replace"), status, headers, media_type="application/json")


def _plotly() -> Path:
    """plotly's own bundle, as its Python package brings it."""
    return Path(str(package_files("plotly") / "package_data" / "plotly.min.js"))


@lru_cache(maxsize=1)
def _static_files() -> Mapping[str, Path]:
    """All that may be asked for, by name: no name that a client sends becomes part of a path."""
    return {path.name: path for path in (*STATIC.iterdir(), _plotly())}


@lru_cache(maxsize=1)
def _plotly_styles() -> str:
    """The ids of the style elements that the bundle puts into a page unless it finds them there.

    They are for maps, which nobody draws here, and the policy would forbid them with a noise in the console.
    """
    ids = re.findall(r'getElementById\("([0-9a-f]{64})"\)', _plotly().read_text(encoding="utf-8"))
    return " ".join(sorted(set(ids)))


@lru_cache(maxsize=1)
def _asset_version() -> str:
    """ChangeTracker with every change of the scripts, the style sheet and plotly."""
    newest = max((path.stat().st_mtime_ns for path in STATIC.iterdir()), default=0)
    return f"{version('plotly')}-{newest:x}"


@lru_cache(maxsize=8)
def _scripts(name: str) -> tuple[str, ...]:
    """A page's script and all that it imports, so that a browser asks for all at once."""
    found: dict[str, None] = {}
    waiting = [name]
    while waiting:
        script = waiting.pop(0)
        if script not in found:
            found[script] = None
            waiting += re.findall(r'from "\./([\w.]+)"', (STATIC / script).read_text(encoding="utf-8"))
    return tuple(found)


def _frame(kind: str, can_control: bool, message: str = "") -> str:
    """An empty page of this kind; its script fills it."""
    assets = f"/-/static/{_asset_version()}"
    page = f"{kind}_page.js"
    text = {
        "locked": f"Log in first. Type on the server's box: {LOGIN_COMMAND}",
        "gone": f"{message[:1].upper()}{message[1:]}.",
    }.get(kind)
    more = ' <a href="/">All sweeps</a>' if kind == "gone" else ""
    script = ""
    if text is None:
        script = "".join(f'<link rel="modulepreload" href="{assets}/{name}">' for name in _scripts(page))
        if "plot.js" in _scripts(page):
            script += f'<link rel="preload" as="script" fetchpriority="low" href="{assets}/plotly.min.js">'
        script += f'<script type="module" src="{assets}/{page}"></script>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>kto-sweep</title><link rel="icon" href="{assets}/icon.svg">'
        f'<link rel="stylesheet" href="{assets}/style.css">{script}</head>'
        f'<body data-plotly="{assets}/plotly.min.js" data-plotly-styles="{_plotly_styles()}">'
        '<a class="skip" href="#main">Skip to content</a>'
        '<header class="top"><nav aria-label="Breadcrumb"><a class="brand" href="/">kto-sweep</a>'
        '<span id="trail"></span></nav><span id="live" role="status"></span></header>'
        f'<main id="main" tabindex="-1">{f"<p class=empty>{escape(text)}{more}</p>" if text else ""}'
        "<noscript>This page needs JavaScript. Without it: kto-sweep compare, kto-sweep status.</noscript>"
        "</main></body></html>"
    )
