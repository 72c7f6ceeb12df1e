"""HTTP routes of artifacts' files: uploads and downloads by signed URLs, and downloads with the API key."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from kto_sweep.server import (
    artifact_creation,
    artifact_manifest,
    artifact_parts,
    artifact_storage,
    artifact_urls,
    request_body,
    run_notices,
    signed_urls,
    uploads,
)
from kto_sweep.server.artifact_manifest import MAX_MANIFEST
from kto_sweep.server.artifact_values import by_global_id, by_id
from kto_sweep.server.errors import BodyTooLarge, DiskFull, NotFoundError, RequestError
from kto_sweep.server.responses import error
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store import artifact_contents as contents
from kto_sweep.server.store import artifacts
from kto_sweep.server.store.artifact_contents import Upload
from kto_sweep.server.store.artifacts import Artifact

TOUCH_SECONDS = 3600.0
"""Seconds between two records that an artifact is being uploaded: a write for each file would be slow."""
DOWNLOAD_HEADERS = {
    "accept-ranges": "bytes",
    "x-content-type-options": "nosniff",
    # A browser must not execute what a client uploaded.
    "content-security-policy": "sandbox",
    "content-disposition": "attachment",
}


def routes(server: ServerState, key: Sequence[Middleware]) -> list[Route]:
    """The routes; `key` is the middleware that requires the API key."""
    api = _Api(server)
    return [
        Route("/artifacts/upload/{token}/{name:path}", api.upload, methods=["PUT"]),
        Route("/artifacts/part/{token}", api.upload_part, methods=["PUT"]),
        Route("/artifacts/manifest-upload/{token}", api.upload_manifest, methods=["PUT"]),
        Route("/artifacts/manifest/{token}/{name}", api.manifest, methods=["GET"]),
        Route("/artifacts/file/{token}/{name:path}", api.file, methods=["GET"]),
        Route(
            "/artifactsV2/{region}/{entity}/{project}/{collection}/{artifact}/{birth}/{digest}/{name:path}",
            api.file_with_key,
            methods=["GET"],
            middleware=list(key),
        ),
    ]


class _Api:
    def __init__(self, server: ServerState) -> None:
        self._server = server

    async def upload(self, request: Request) -> Response:
        """Stores the content of a file that is uploaded in one request."""
        artifact_id, digest = self._token(request, artifact_urls.UPLOAD)
        await run_in_threadpool(self._touch, artifact_id)
        async with self._noted(artifact_id):
            size = request_body.announced_size(request)
            await artifact_storage.store(self._server, digest, request_body.chunks(request), size)
        return Response()

    async def upload_part(self, request: Request) -> Response:
        """Stores a part; the ETag is the part's digest, which the client sends back at the end."""
        upload_id, number = self._token(request, artifact_urls.PART)
        upload = await run_in_threadpool(self._upload, upload_id)
        async with self._noted(upload.artifact_id):
            size = request_body.announced_size(request)
            digest = await artifact_parts.store(
                self._server, upload, number, request_body.chunks(request), size
            )
        return Response(headers={"etag": digest})

    async def upload_manifest(self, request: Request) -> Response:
        """Stores a manifest."""
        manifest_id = self._token(request, artifact_urls.MANIFEST_UPLOAD)
        artifact_id = await run_in_threadpool(self._artifact_of_manifest, manifest_id)
        async with self._noted(artifact_id):
            body = await request_body.read(request, MAX_MANIFEST)
            await run_in_threadpool(self._fill_manifest, manifest_id, body)
        return Response()

    async def manifest(self, request: Request) -> Response:
        """Sends a manifest."""
        manifest_id = self._token(request, artifact_urls.MANIFEST)
        return await run_in_threadpool(self._manifest, manifest_id)

    async def file(self, request: Request) -> Response:
        """Sends a file of an artifact."""
        artifact_id, digest = self._token(request, artifact_urls.DOWNLOAD)
        return await run_in_threadpool(self._file, request, artifact_id, digest)

    async def file_with_key(self, request: Request) -> Response:
        """Sends a file of an artifact at the address that wandb makes itself for a single file."""
        digest = artifact_manifest.from_hex(request.path_params["digest"])

        def send() -> Response:
            artifact = by_global_id(self._server.database.reader(), request.path_params["artifact"])
            return self._file(request, artifact.id, digest)

        return await run_in_threadpool(send)

    @asynccontextmanager
    async def _noted(self, artifact_id: int) -> AsyncIterator[None]:
        """Notes a refused upload on its run's page: `log_artifact` does not wait for it."""
        try:
            yield
        except (BodyTooLarge, DiskFull, RequestError) as problem:
            await run_in_threadpool(run_notices.upload_refused, self._server, artifact_id, str(problem))
            raise

    def _token(self, request: Request, use: str) -> Any:
        return signed_urls.verify(self._server, use, request.path_params["token"])

    def _touch(self, artifact_id: int) -> None:
        """Checks that the artifact still needs files, and has maintenance keep it."""
        artifact, now = by_id(self._server.database.reader(), artifact_id), self._server.now()
        artifact_creation.require_pending(artifact)
        if now - artifact.updated_at > TOUCH_SECONDS:
            self._server.database.write(lambda c: artifacts.touch(c, [artifact_id], now))

    def _upload(self, upload_id: int) -> Upload:
        upload = contents.get_upload(self._server.database.reader(), upload_id)
        if upload is None:
            raise RequestError("there is no such upload: it is complete, or its artifact has been deleted")
        self._touch(upload.artifact_id)
        return upload

    def _artifact_of_manifest(self, manifest_id: int) -> int:
        record = artifact_creation.manifest_by_id(self._server.database.reader(), manifest_id)
        self._touch(record.artifact_id)
        return record.artifact_id

    def _fill_manifest(self, manifest_id: int, body: bytes) -> None:
        record = artifact_creation.manifest_by_id(self._server.database.reader(), manifest_id)
        artifact_manifest.check_digest(body, record.digest)
        parsed = artifact_manifest.parse(body)
        self._server.database.write(lambda c: artifact_creation.fill_manifest(c, manifest_id, parsed))

    def _manifest(self, manifest_id: int) -> Response:
        record = contents.get_manifest(self._server.database.reader(), manifest_id)
        if record is None or record.head is None:
            raise NotFoundError("there is no such manifest; its artifact may have been deleted")
        entries = contents.entries(self._server.database.reader(), manifest_id)
        body = b"".join(artifact_manifest.as_json(record.head, entries))
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})

    def _file(self, request: Request, artifact_id: int, digest: str) -> Response:
        artifact = artifacts.get(self._server.database.reader(), artifact_id)
        if artifact is None or not self._has(artifact, digest):
            raise NotFoundError("there is no such file; its artifact may have been deleted")
        reader = artifact_storage.Reader(self._server, digest)
        return send(reader, request.path_params["name"], request.headers.get("range"))

    def _has(self, artifact: Artifact, digest: str) -> bool:
        manifest = artifact.manifest_id
        return manifest is not None and contents.has_digest(self._server.database.reader(), manifest, digest)


def send(reader: artifact_storage.Reader, name: str, byte_range: str | None) -> Response:
    """The content, or the range of it that the client asks for, as an attachment."""
    start, stop, status = 0, reader.size, 200
    headers = DOWNLOAD_HEADERS | {"content-type": uploads.mimetype(name)}
    if byte_range is not None and (bounds := _range(byte_range, reader.size)) is not None:
        start, stop = bounds
        status = 206
        if start >= stop:
            reader.close()
            return error(416, "the range is not in the file", {"content-range": f"bytes */{reader.size}"})
        headers["content-range"] = f"bytes {start}-{stop - 1}/{reader.size}"
    headers["content-length"] = str(stop - start)
    return StreamingResponse(reader.read(start, stop), status, headers)


def _range(text: str, size: int) -> tuple[int, int] | None:
    """Start and stop of `bytes=START-END`; None for another kind of range, which may be ignored."""
    unit, _, bounds = text.partition("=")
    first, dash, last = bounds.strip().partition("-")
    if unit.strip() != "bytes" or not dash or not (first or "0").isdecimal() or not (last or "0").isdecimal():
        return None
    if not first:
        return (max(0, size - int(last)), size) if last else None
    return int(first), min(int(last) + 1, size) if last else size
