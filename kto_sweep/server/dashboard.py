"""The dashboard's routes: pages, their scripts, their JSON data, and actions.

Pages are served empty; their scripts fetch JSON and insert it as text, so that a run name cannot inject
markup. Data, scripts and actions are under `/-/`, which cannot be an entity name.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from starlette.authentication import has_required_scope, requires
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from kto_sweep.local_server.login_tokens import PARAMETER
from kto_sweep.server import (
    dashboard_actions,
    dashboard_artifacts,
    dashboard_cells,
    dashboard_data,
    dashboard_run,
    dashboard_runs,
    history_blocks,
    request_body,
    uploads,
)
from kto_sweep.server.auth import CHANGE, READ, browser_access, how_to_log_in, log_in, without_token
from kto_sweep.server.columns import ColumnCache
from kto_sweep.server.dashboard_comparison import ComparisonCache
from kto_sweep.server.dashboard_data import ChangeTracker, Row
from kto_sweep.server.errors import NotFoundError, RequestError
from kto_sweep.server.responses import Json, html
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store import files, sweeps
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_view import StatusCache
from kto_sweep.sweep.sweep_state import SweepStatus

STATIC = Path(__file__).parent / "static"
MAX_ACTION = 100_000
"""Maximum bytes of an action's body."""
MAX_CURVES = 400
"""Maximum runs of a response."""
MAX_POINTS = 4000
"""Maximum points of a curve."""

POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    # plotly adds an empty style element (the hash is that of the empty string) and sets style attributes.
    "style-src 'self'; style-src-elem 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; "
    "style-src-attr 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

Handler = Callable[[Request], Awaitable[Response]]


def routes(server: ServerState, *, https: bool, open_on_loopback: bool) -> list[Route]:
    """The routes of the dashboard."""
    api = _Dashboard(server)
    access = browser_access(server, https=https, open_on_loopback=open_on_loopback)

    def get(path: str, handler: Handler) -> Route:
        return Route(path, handler, methods=["GET"], middleware=access)

    def post(path: str, handler: Handler) -> Route:
        return Route(path, handler, methods=["POST"], middleware=access)

    return [
        Route("/-/static/{version}/{name}", api.static, methods=["GET"]),
        get("/-/data/sweeps", api.data(api.all_sweeps)),
        get("/-/data/{entity}/{project}", api.data(api.project)),
        get("/-/data/{entity}/{project}/curves", api.data(api.curves)),
        get("/-/data/{entity}/{project}/sweeps/{sweep}", api.data(api.sweep)),
        get("/-/data/{entity}/{project}/sweeps/{sweep}/runs", api.data(api.runs)),
        get("/-/data/{entity}/{project}/sweeps/{sweep}/cells", api.data(api.cells)),
        get("/-/data/{entity}/{project}/sweeps/{sweep}/comparison", api.data(api.comparison)),
        get("/-/data/{entity}/{project}/runs/{run}", api.data(api.run)),
        get("/-/data/{entity}/{project}/runs/{run}/console", api.data(api.console)),
        get("/-/data/{entity}/{project}/runs/{run}/system", api.data(api.system)),
        get("/-/file/{file:int}", api.file),
        get("/-/data/artifacts/{artifact:int}/files", api.data(api.artifact)),
        get("/-/artifact/{artifact:int}/{path:path}", api.artifact_file),
        post("/-/do/{entity}/{project}/sweeps/{sweep}", api.change_sweep),
        post("/-/do/{entity}/{project}/runs/{run}", api.change_run),
        get("/", api.page("list", lambda connection, names: None)),
        get("/{entity}/{project}", api.page("list", dashboard_data.find_project)),
        get("/{entity}/{project}/compare", api.page("compare", dashboard_data.find_project)),
        get("/{entity}/{project}/sweeps/{sweep}", api.page("sweep", dashboard_data.find_sweep)),
        get("/{entity}/{project}/runs/{run}", api.page("run", dashboard_data.find_run)),
    ]


class _Dashboard:
    """Handlers of the dashboard's routes."""

    def __init__(self, server: ServerState) -> None:
        self._server = server
        self._columns = ColumnCache(history_blocks.long_columns)
        self._changes = ChangeTracker()
        self._comparisons = ComparisonCache()
        self._statuses = StatusCache()

    async def static(self, request: Request) -> Response:
        """A script or style sheet; its URL contains its version, so that browsers may cache it forever."""
        name = request.path_params["name"]
        path = _static_files().get(name)
        if path is None:
            raise NotFoundError(f"no such file: {name}")
        headers = {
            "x-content-type-options": "nosniff",
            "cache-control": "private, max-age=31536000, immutable",
        }
        return FileResponse(path, media_type=TYPES.get(path.suffix), headers=headers)

    def page(self, kind: str, find: Callable[[Any, Mapping[str, str]], object]) -> Handler:
        """Handler that serves the empty page; `find` raises NotFoundError for an unknown object."""

        async def show(request: Request) -> Response:
            may_read = has_required_scope(request, [READ])
            # In a browser that is logged in, a link that was used before opens the page, too.
            if PARAMETER in request.query_params and (await log_in(request, self._server) or may_read):
                return without_token(request)
            if not may_read:
                message, command = how_to_log_in(request)
                return _page(401, message=message, command=command)
            try:
                await run_in_threadpool(lambda: find(self._server.database.reader(), request.path_params))
            except NotFoundError as problem:
                text = str(problem)
                return _page(404, message=f"{text[:1].upper()}{text[1:]}.", home_link=True)
            return _page(200, scripts=_scripts(f"{kind}_page.js"))

        return show

    def data(self, answer: Callable[[Request], Row | None]) -> Handler:
        """Handler that sends the result of `answer` as JSON, or 204 when nothing changed."""

        @requires(READ, status_code=401)
        async def respond(request: Request) -> Response:
            body = await run_in_threadpool(answer, request)
            if body is None:
                return Response(status_code=204, headers={"cache-control": "no-store"})
            return Json({**body, "csrf": request.user.csrf})

        handler: Handler = respond
        return handler

    def all_sweeps(self, request: Request) -> Row:
        """All sweeps."""
        return dashboard_data.sweep_list(
            self._server.database.reader(), None, self._status, self._comparisons.overview
        )

    def project(self, request: Request) -> Row:
        """A project's sweeps and its runs without a sweep."""
        connection = self._server.database.reader()
        project = dashboard_data.find_project(connection, request.path_params)
        return dashboard_data.sweep_list(connection, project, self._status, self._comparisons.overview)

    def _status(self, sweep: Sweep) -> SweepStatus:
        return self._statuses.of(self._server.database.reader(), self._server, sweep)

    def sweep(self, request: Request) -> Row | None:
        """A sweep and its runs that changed since the tag `since`."""
        connection = self._server.database.reader()
        _, sweep = dashboard_data.find_sweep(connection, request.path_params)
        status = self._status(sweep)
        overview = self._comparisons.overview(status)
        facts = dashboard_data.sweep_facts(connection, self._server, sweep, status, overview)

        places = self._comparisons.places(status)
        return self._changes.since(connection, sweep, facts, places, request.query_params.get("since"))

    def runs(self, request: Request) -> Row:
        """The sweep's runs that match `filter`, in the order of the column `sort`, from number `from` on."""
        connection, query = self._server.database.reader(), request.query_params
        _, sweep = dashboard_data.find_sweep(connection, request.path_params)
        status = self._status(sweep)
        return dashboard_runs.page(
            connection,
            sweep,
            status.view,
            self._comparisons.places(status),
            dashboard_runs.Query(
                query.get("filter", ""),
                query.get("sort", "rank"),
                descending="descending" in query,
                first=_parse_int(query.get("from"), 0, 2**53),
            ),
        )

    def cells(self, request: Request) -> Row:
        """The cells of a sweep's grid."""
        connection = self._server.database.reader()
        _, sweep = dashboard_data.find_sweep(connection, request.path_params)
        return {"cells": dashboard_cells.cells(self._status(sweep))}

    def comparison(self, request: Request) -> Row:
        """The verdict on a sweep, and the importance of its parameters."""
        connection = self._server.database.reader()
        _, sweep = dashboard_data.find_sweep(connection, request.path_params)
        return self._comparisons.of(self._status(sweep))

    def curves(self, request: Request) -> Row:
        """Curves of the metrics `key` of the runs `run`, each in at most `points` points."""
        connection = self._server.database.reader()
        project = dashboard_data.find_project(connection, request.path_params)
        query = request.query_params
        names, keys = query.getlist("run")[:MAX_CURVES], query.getlist("key")
        return dashboard_run.curves(
            connection, self._columns, project, names, keys, _parse_int(query.get("points"), 400, MAX_POINTS)
        )

    def run(self, request: Request) -> Row | None:
        """A run without its curves and console."""
        connection = self._server.database.reader()
        _, run = dashboard_data.find_run(connection, request.path_params)
        sweep = sweeps.get(connection, run.sweep_id) if run.sweep_id is not None else None
        status = self._status(sweep) if sweep else None
        places = self._comparisons.places(status) if status else {}
        facts = dashboard_run.facts(connection, self._columns, run, status.view if status else None, places)
        return None if facts["tag"] == request.query_params.get("since") else facts

    def console(self, request: Request) -> Row:
        """Console lines from number `from`, else the last ones."""
        connection = self._server.database.reader()
        _, run = dashboard_data.find_run(connection, request.path_params)
        start = request.query_params.get("from")
        return dashboard_run.console(connection, run, None if start is None else _parse_int(start, 0, 2**53))

    def system(self, request: Request) -> Row:
        """Curves of a run's system metrics."""
        connection = self._server.database.reader()
        _, run = dashboard_data.find_run(connection, request.path_params)
        return dashboard_run.system(connection, self._columns, run)

    @requires(READ, status_code=401)
    async def file(self, request: Request) -> Response:
        """A run's file as an attachment: a browser must not execute what a client uploaded."""
        number = request.path_params["file"]
        file = await run_in_threadpool(lambda: files.get(self._server.database.reader(), number))
        if file is None:
            raise NotFoundError("no such file")
        return uploads.download(self._server, file)

    def artifact(self, request: Request) -> Row:
        """The files of an artifact from number `from`."""
        first = _parse_int(request.query_params.get("from"), 0, 2**53)
        connection = self._server.database.reader()
        return dashboard_artifacts.files_of(connection, request.path_params["artifact"], first)

    @requires(READ, status_code=401)
    async def artifact_file(self, request: Request) -> Response:
        """A file of an artifact as an attachment."""
        number, path = request.path_params["artifact"], request.path_params["path"]
        byte_range = request.headers.get("range")
        return await run_in_threadpool(
            lambda: dashboard_artifacts.download(self._server, number, path, byte_range)
        )

    @requires(CHANGE)
    async def change_sweep(self, request: Request) -> Response:
        """Pauses, resumes, stops or cancels a sweep."""

        def work(body: Mapping[str, Any]) -> dashboard_actions.Change:
            _, sweep = dashboard_data.find_sweep(self._server.database.reader(), request.path_params)
            return dashboard_actions.of_sweep(self._server, sweep, body)

        return await self._change(request, work)

    @requires(CHANGE)
    async def change_run(self, request: Request) -> Response:
        """Stops a run, or sets its tags and notes."""

        def work(body: Mapping[str, Any]) -> dashboard_actions.Change:
            _, run = dashboard_data.find_run(self._server.database.reader(), request.path_params)
            return dashboard_actions.of_run(self._server, run, body)

        return await self._change(request, work)

    async def _change(
        self, request: Request, work: Callable[[Mapping[str, Any]], dashboard_actions.Change]
    ) -> Response:
        body = request_body.parse_json(await request_body.read(request, MAX_ACTION))
        if not isinstance(body, dict):
            raise RequestError("the body is not a JSON object")
        change = await run_in_threadpool(work, body)
        await run_in_threadpool(self._server.database.write, change)
        return Json({"done": True})


def _parse_int(text: str | None, default: int, maximum: int) -> int:
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 18:
        raise RequestError(f"{text!r} is not a whole number")
    return min(int(text), maximum)


def _plotly() -> Path:
    """The plotly.js bundle from plotly's Python package."""
    return Path(str(package_files("plotly") / "package_data" / "plotly.min.js"))


@lru_cache(maxsize=1)
def _static_files() -> Mapping[str, Path]:
    """All static files by name: a name from a client never becomes part of a path."""
    return {path.name: path for path in (*STATIC.iterdir(), _plotly())}


@lru_cache(maxsize=1)
def _plotly_styles() -> str:
    """Ids of the style elements that the bundle adds to a page unless they exist.

    They are for maps, which the dashboard does not draw, and the content security policy blocks them with
    console errors.
    """
    ids = re.findall(r'getElementById\("([0-9a-f]{64})"\)', _plotly().read_text(encoding="utf-8"))
    return " ".join(sorted(set(ids)))


@lru_cache(maxsize=1)
def _asset_version() -> str:
    """Version of the static files: changes with the scripts, the style sheet and plotly."""
    newest = max((path.stat().st_mtime_ns for path in STATIC.iterdir()), default=0)
    return f"{version('plotly')}-{newest:x}"


@lru_cache(maxsize=8)
def _scripts(name: str) -> tuple[str, ...]:
    """A page's script and all its imports, so that the browser can preload them together."""
    scripts: dict[str, None] = {}
    waiting = [name]
    while waiting:
        script = waiting.pop(0)
        if script not in scripts:
            scripts[script] = None
            waiting += re.findall(r'from "\./([\w.]+)"', (STATIC / script).read_text(encoding="utf-8"))
    return tuple(scripts)


def _page(
    status: int,
    *,
    scripts: Sequence[str] = (),
    message: str = "",
    command: str = "",
    home_link: bool = False,
) -> Response:
    """A page for its first script to fill, or one with a message and the command that helps."""
    return html(
        "page.html",
        POLICY,
        status,
        assets=f"/-/static/{_asset_version()}",
        plotly_styles=_plotly_styles(),
        scripts=scripts,
        message=message,
        command=command,
        home_link=home_link,
    )
