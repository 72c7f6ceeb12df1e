"""The HTTP application: routes, API key check, body size limits, and the status code of each error.

wandb retries a 5xx for minutes to days, so only a database that is temporarily not writable returns one
(503).
"""

import base64
import binascii
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from kto_sweep.server import dashboard, file_stream, graphql_api, request_body, uploads
from kto_sweep.server.errors import BodyTooLarge, NotFoundError, RequestError
from kto_sweep.server.resolvers.registry import Context
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store.database import StoreUnavailable
from kto_sweep.server.store.files import File

MAX_QUERY = 16 * 2**20
"""Maximum bytes of a GraphQL request."""
MAX_MESSAGE = 64 * 2**20
"""Maximum bytes of a file_stream request; wandb sends up to about 10 MB."""
RETRY_SECONDS = "5"

_log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


def build_app(server: ServerState, identity: Mapping[str, str]) -> Starlette:
    """The Starlette application; `identity` is the body of /ready."""
    api = _Api(server, identity)
    return Starlette(
        routes=[
            Route("/ready", _with_error_responses(api.ready), methods=["GET"]),
            Route("/graphql", _with_error_responses(api.graphql), methods=["POST"]),
            Route(
                "/files/{entity}/{project}/{run}/file_stream",
                _with_error_responses(api.file_stream),
                methods=["POST"],
            ),
            Route(
                "/storage/{file:int}/{token}/{name:path}", _with_error_responses(api.upload), methods=["PUT"]
            ),
            Route(
                "/storage/{file:int}/{token}/{name:path}",
                _with_error_responses(api.download),
                methods=["GET"],
            ),
            *dashboard.routes(server, _with_error_responses),
        ]
    )


def _with_error_responses(handler: Handler) -> Handler:
    """Wraps a handler: every exception it may raise becomes a response with the matching status code."""

    async def respond(request: Request) -> Response:
        try:
            return await handler(request)
        except NotFoundError as problem:
            return _errors(404, str(problem))
        except (RequestError, UnicodeError, OverflowError) as problem:
            return _errors(400, str(problem))
        except BodyTooLarge:
            return _errors(413, "the body is too large")
        except (StoreUnavailable, OSError) as problem:
            _log.error("%s %s: %s", request.method, request.url.path, problem)
            return _errors(503, str(problem), {"retry-after": RETRY_SECONDS})
        except ClientDisconnect:
            return _errors(400, "the client disconnected")

    return respond


def _errors(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json({"errors": [{"message": message}]}, status, headers)


def _json(body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(graphql_api.encode(body), status, headers, media_type="application/json")


class _Api:
    """Handlers of the API routes."""

    def __init__(self, server: ServerState, identity: Mapping[str, str]) -> None:
        self._server = server
        self._identity = identity
        self._key = server.key.encode()

    async def ready(self, request: Request) -> Response:
        """Identifies the server without a key, so that a client can check which server owns the port."""
        return _json(self._identity)

    async def graphql(self, request: Request) -> Response:
        """Executes a GraphQL request."""
        if not self._has_key(request):
            return _no_key()
        payload = _parse_json(await request_body.read(request, MAX_QUERY))
        context = Context(self._server, f"{request.url.scheme}://{request.url.netloc}")
        answer = await run_in_threadpool(graphql_api.execute, context, payload)
        return _json(answer.body, answer.status)

    async def file_stream(self, request: Request) -> Response:
        """Stores one file_stream message of a run's process."""
        if not self._has_key(request):
            return _no_key()
        message = file_stream.parse(await request_body.read(request, MAX_MESSAGE))
        entity, project, run = (request.path_params[name] for name in ("entity", "project", "run"))
        server = self._server
        answer = await run_in_threadpool(
            server.database.write,
            lambda c: file_stream.receive(c, server, entity, project, run, message),
        )
        return _json(answer)

    async def upload(self, request: Request) -> Response:
        """Stores an uploaded file; the signed token in the URL replaces the API key."""
        file = await run_in_threadpool(self._file, request)
        await uploads.store(self._server, file, request.stream())
        return Response()

    async def download(self, request: Request) -> Response:
        """Sends a file."""
        return uploads.download(self._server, await run_in_threadpool(self._file, request))

    def _file(self, request: Request) -> File:
        return uploads.authorize(self._server, request.path_params["file"], request.path_params["token"])

    def _has_key(self, request: Request) -> bool:
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            user, _, key = base64.b64decode(encoded).partition(b":")
        except (binascii.Error, ValueError):
            return False
        return user == b"api" and hmac.compare_digest(key, self._key)


def _no_key() -> Response:
    return _errors(401, "invalid API key", {"www-authenticate": 'Basic realm="kto-sweep"'})


def _parse_json(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as problem:
        raise RequestError(f"the body is not JSON: {problem}") from problem
