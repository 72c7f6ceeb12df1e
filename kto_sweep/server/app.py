"""The HTTP application: routes, body size limits, and the status code of each error.

wandb retries a 5xx for minutes to days, so only a database that is temporarily not writable (503) and a disk
without room for an upload (507) return one.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from kto_sweep.server import (
    artifact_routes,
    dashboard,
    file_stream,
    graphql_api,
    history_export,
    request_body,
    sweep_trials,
    uploads,
)
from kto_sweep.server.auth import LOGIN_COMMAND, ApiKey, ask_for_key
from kto_sweep.server.errors import (
    BodyTooLarge,
    BodyTooSlow,
    ContentDamaged,
    DiskFull,
    NotFoundError,
    RequestError,
)
from kto_sweep.server.resolvers.registry import Context
from kto_sweep.server.responses import Json, error
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store.database import StoreUnavailable
from kto_sweep.server.store.files import File

MAX_QUERY = 16 * 2**20
"""Maximum bytes of a GraphQL request."""
MAX_MESSAGE = 64 * 2**20
"""Maximum bytes of a file_stream request; wandb sends up to about 10 MB."""
RETRY_SECONDS = "5"
SHARED, WRITER = "x-wandb-use-async-filestream", "x-wandb-async-client-id"
"""Headers of a process that writes a run together with others (wandb's mode="shared"), and its random id."""

_log = logging.getLogger(__name__)

ErrorHandler = Callable[[Request, Exception], Awaitable[Response]]


def build_app(
    server: ServerState, identity: Mapping[str, str], *, https: bool, open_on_loopback: bool
) -> Starlette:
    """The Starlette application; `identity` is the body of /ready, `https`: clients connect by it.

    `open_on_loopback`: browsers of this machine need no login.
    """
    api = _Api(server, identity)
    key = [Middleware(AuthenticationMiddleware, backend=ApiKey(server.key), on_error=ask_for_key)]
    stream, storage = "/files/{entity}/{project}/{run}/file_stream", "/storage/{token}/{name:path}"
    return Starlette(
        routes=[
            Route("/ready", api.ready, methods=["GET"]),
            Route("/graphql", api.graphql, methods=["POST"], middleware=key),
            Route(stream, api.file_stream, methods=["POST"], middleware=key),
            Route(storage, api.upload, methods=["PUT"]),
            Route(storage, api.download, methods=["GET"]),
            Route("/history/{token}/{name}", api.exported_history, methods=["GET"]),
            Route(storage, api.preflight, methods=["OPTIONS"]),
            sweep_trials.route(server, key),
            *artifact_routes.routes(server, key),
            *dashboard.routes(server, https=https, open_on_loopback=open_on_loopback),
        ],
        exception_handlers={
            NotFoundError: _with_status(404),
            RequestError: _with_status(400),
            UnicodeError: _with_status(400),
            OverflowError: _with_status(400),
            ClientDisconnect: _with_status(400),
            BodyTooSlow: _stalled,
            BodyTooLarge: _with_status(413),
            ContentDamaged: _with_status(410),
            DiskFull: _with_status(507),
            StoreUnavailable: _unavailable,
            OSError: _unavailable,
            MemoryError: _unavailable,
            401: _log_in,
            403: _log_in,
        },
    )


def _with_status(status: int) -> ErrorHandler:
    async def respond(request: Request, problem: Exception) -> Response:
        return error(status, str(problem))

    return respond


async def _stalled(request: Request, problem: Exception) -> Response:
    return error(408, str(problem), {"connection": "close"})  # the rest would be taken for a request


async def _unavailable(request: Request, problem: Exception) -> Response:
    _log.error("%s %s: %s", request.method, request.url.path, problem)
    return error(503, str(problem) or "out of memory", {"retry-after": RETRY_SECONDS})


async def _log_in(request: Request, problem: Exception) -> Response:
    """Response to a page's script that lacks the login for what it asks."""
    assert isinstance(problem, HTTPException)
    return error(problem.status_code, f"log in first: reload the page, or run: {LOGIN_COMMAND}")


class _Api:
    """Handlers of the API routes."""

    def __init__(self, server: ServerState, identity: Mapping[str, str]) -> None:
        self._server = server
        self._identity = identity

    async def ready(self, request: Request) -> Response:
        """Identifies the server without a key, so that a client can check which server owns the port."""
        return Json(self._identity, 200 if self._server.database.has_writer else 503)

    async def graphql(self, request: Request) -> Response:
        """Executes a GraphQL request."""
        payload = request_body.parse_json(await request_body.read(request, MAX_QUERY))
        base_url = f"{request.url.scheme}://{request.url.netloc}"
        context = Context(self._server, base_url, shared=SHARED in request.headers)
        answer = await run_in_threadpool(graphql_api.execute, context, payload)
        return Json(answer.body, answer.status)

    async def file_stream(self, request: Request) -> Response:
        """Stores one file_stream message of a run's process."""
        message = file_stream.parse(await request_body.read(request, MAX_MESSAGE))
        entity, project, run = (request.path_params[name] for name in ("entity", "project", "run"))
        writer = request.headers.get(WRITER) if SHARED in request.headers else None

        def receive() -> dict[str, Any]:
            return self._server.database.write(
                lambda c: file_stream.receive(c, self._server, entity, project, run, message, writer)
            )

        return Json(await run_in_threadpool(receive))

    async def upload(self, request: Request) -> Response:
        """Stores an uploaded file; the signed token in the URL replaces the API key."""
        file = await run_in_threadpool(self._file, request)
        size = request_body.announced_size(request)
        await uploads.store(self._server, file, request_body.chunks(request), size)
        return Response()

    async def download(self, request: Request) -> Response:
        """Sends a file."""
        return uploads.download(self._server, await run_in_threadpool(self._file, request))

    async def exported_history(self, request: Request) -> Response:
        """Sends a file of exported history, or a range of it."""
        return history_export.download(self._server, request.path_params["token"])

    async def preflight(self, request: Request) -> Response:
        """Allows this server's own pages, which browsers do not ask about, and `wandb verify` does."""
        own = f"{request.url.scheme}://{request.url.netloc}"
        if request.headers.get("origin") != own:
            return Response(status_code=403)
        return Response(
            headers={"access-control-allow-origin": own, "access-control-allow-methods": "GET, PUT"}
        )

    def _file(self, request: Request) -> File:
        return uploads.authorize(self._server, request.path_params["token"])
