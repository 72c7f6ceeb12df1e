"""The HTTP side: routes, the key, bounds on bodies, and which status code stands for what.

wandb retries 5xx for minutes to days, so only a database that cannot be written now gets one (503).
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
from kto_sweep.server.backend import Backend
from kto_sweep.server.errors import GoneError, RequestError
from kto_sweep.server.resolvers.registry import Request as GraphQLRequest
from kto_sweep.server.store.database import StoreUnavailable
from kto_sweep.server.store.files import File

LARGEST_QUERY = 16 * 2**20
LARGEST_MESSAGE = 64 * 2**20
"""Bytes of one file_stream request at most; wandb sends about 10 MB."""
RETRY_SECONDS = "5"

_log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


def build_app(backend: Backend, identity: Mapping[str, str]) -> Starlette:
    """The application; `identity` is what /ready says."""
    api = _Api(backend, identity)
    return Starlette(
        routes=[
            Route("/ready", _guarded(api.ready), methods=["GET"]),
            Route("/graphql", _guarded(api.graphql), methods=["POST"]),
            Route("/files/{entity}/{project}/{run}/file_stream", _guarded(api.file_stream), methods=["POST"]),
            Route("/storage/{file:int}/{token}/{name:path}", _guarded(api.upload), methods=["PUT"]),
            Route("/storage/{file:int}/{token}/{name:path}", _guarded(api.download), methods=["GET"]),
            *dashboard.routes(backend, _guarded),
        ]
    )


def _guarded(handler: Handler) -> Handler:
    """The handler, with every error it may raise turned into the status that clients understand."""

    async def respond(request: Request) -> Response:
        try:
            return await handler(request)
        except GoneError as problem:
            return _errors(404, str(problem))
        except (RequestError, UnicodeError, OverflowError) as problem:
            return _errors(400, str(problem))
        except uploads.TooLarge:
            return _errors(413, "the body is too large")
        except (StoreUnavailable, OSError) as problem:
            _log.error("%s %s: %s", request.method, request.url.path, problem)
            return _errors(503, str(problem), {"retry-after": RETRY_SECONDS})
        except ClientDisconnect:
            return _errors(400, "the client went away")

    return respond


def _errors(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json({"errors": [{"message": message}]}, status, headers)


def _json(body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(graphql_api.encode(body), status, headers, media_type="application/json")


class _Api:
    """The handlers of the machine-readable routes."""

    def __init__(self, backend: Backend, identity: Mapping[str, str]) -> None:
        self._backend = backend
        self._identity = identity
        self._key = backend.key.encode()

    async def ready(self, request: Request) -> Response:
        """Who this is; needs no key, so that a client can tell whose port it has found."""
        return _json(self._identity)

    async def graphql(self, request: Request) -> Response:
        """One GraphQL request."""
        if not self._has_key(request):
            return _no_key()
        payload = _parse_json(await request_body.read(request, LARGEST_QUERY))
        context = GraphQLRequest(self._backend, f"{request.url.scheme}://{request.url.netloc}")
        answer = await run_in_threadpool(graphql_api.answer, context, payload)
        return _json(answer.body, answer.status)

    async def file_stream(self, request: Request) -> Response:
        """One message of a run's process."""
        if not self._has_key(request):
            return _no_key()
        message = file_stream.parse(await request_body.read(request, LARGEST_MESSAGE))
        entity, project, run = (request.path_params[name] for name in ("entity", "project", "run"))
        backend = self._backend
        answer = await run_in_threadpool(
            backend.database.write,
            lambda c: file_stream.receive(c, backend, entity, project, run, message),
        )
        return _json(answer)

    async def upload(self, request: Request) -> Response:
        """The bytes of a file; the token in the URL stands for the key."""
        file = await run_in_threadpool(self._file, request)
        await uploads.store(self._backend, file, request.stream())
        return Response()

    async def download(self, request: Request) -> Response:
        """The bytes of a file."""
        return uploads.download(self._backend, await run_in_threadpool(self._file, request))

    def _file(self, request: Request) -> File:
        return uploads.authorised(self._backend, request.path_params["file"], request.path_params["token"])

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
