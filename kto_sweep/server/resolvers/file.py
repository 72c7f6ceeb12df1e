"""Files as GraphQL objects: those of runs and those of artifacts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kto_sweep.server import artifact_urls, uploads
from kto_sweep.server.artifact_manifest import Entry
from kto_sweep.server.resolvers.registry import Context
from kto_sweep.server.store.artifact_contents import ManifestRecord
from kto_sweep.server.store.artifacts import Artifact
from kto_sweep.server.store.files import File
from kto_sweep.server.store.ids import to_global
from kto_sweep.server.wire import timestamp


@dataclass(frozen=True)
class FileNode:
    """The fields of a File."""

    id: str
    name: str
    url: str | None = None
    upload_url: str | None = None
    size_bytes: int = 0
    mimetype: str | None = None
    updated_at: str | None = None
    md5: str | None = None
    storage_path: str | None = None
    upload_headers: Sequence[str] = ()
    upload_multipart_urls: dict[str, Any] | None = None
    artifact: Artifact | None = None

    @property
    def display_name(self) -> str:
        """The path of an artifact's file."""
        return self.name

    @property
    def direct_url(self) -> str | None:
        """The URL: this server has no redirects to a store of files."""
        return self.url

    @property
    def digest(self) -> str | None:
        """The digest of an artifact's file."""
        return self.md5


def of_run(context: Context, file: File) -> FileNode:
    """A file of a run; its URL serves for upload and download."""
    url = uploads.url(context.server, context.base_url, file)
    return FileNode(
        id=to_global("File", file.id),
        name=file.name,
        url=url,
        upload_url=url,
        size_bytes=file.size or 0,
        mimetype=uploads.mimetype(file.name),
        updated_at=timestamp(file.updated_at),
        md5=file.md5,
    )


def of_artifact(context: Context, artifact: Artifact, entry: Entry) -> FileNode:
    """A file of a committed artifact; a reference has no URL of this server."""
    url = artifact_urls.file(context.server, context.base_url, artifact, entry)
    return FileNode(
        id=to_global("ArtifactFile", artifact.id),
        name=entry.path,
        url=entry.ref or url,
        size_bytes=entry.size,
        mimetype=uploads.mimetype(entry.path),
        updated_at=timestamp(artifact.updated_at),
        md5=entry.digest,
        storage_path=None if entry.ref else f"{artifact_urls.STORAGE}/{entry.digest}",
        artifact=artifact,
    )


def of_manifest(context: Context, manifest: ManifestRecord) -> FileNode:
    """The file of a manifest, to upload and to download."""
    return FileNode(
        id=to_global("ArtifactManifestFile", manifest.id),
        name=artifact_urls.MANIFEST_NAME,
        url=artifact_urls.manifest(context.server, context.base_url, manifest.id),
        upload_url=artifact_urls.manifest_upload(context.server, context.base_url, manifest.id),
        mimetype="application/json",
        md5=manifest.digest,
    )
