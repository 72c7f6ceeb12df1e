"""URLs of artifacts' files: a signed token permits one use of one file, in place of the API key.

Download URLs contain the names that W&B's have, for clients that tell requests apart by them.
"""

from kto_sweep.server import signed_urls
from kto_sweep.server.artifact_manifest import Entry
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store.artifacts import Artifact
from kto_sweep.server.uploads import readable

DOWNLOAD = "download of an artifact's file"
UPLOAD = "upload of an artifact's file"
PART = "upload of a part of an artifact's file"
MANIFEST = "download of a manifest"
MANIFEST_UPLOAD = "upload of a manifest"
"""Uses of tokens: a token for one use permits no other."""
STORAGE = "wandb_artifacts"
"""W&B's folder of artifacts' contents."""
MANIFEST_NAME = "wandb_manifest.json"


def file(server: ServerState, base_url: str, artifact: Artifact, entry: Entry) -> str:
    """Download URL of a committed artifact's file."""
    token = signed_urls.sign(server, DOWNLOAD, [artifact.id, entry.digest])
    return f"{base_url}/artifacts/file/{token}/{STORAGE}/{readable(entry.path)}"


def upload(server: ServerState, base_url: str, artifact_id: int, digest: str, path: str) -> str:
    """Upload URL of a content that an uncommitted artifact needs."""
    token = signed_urls.sign(server, UPLOAD, [artifact_id, digest])
    return f"{base_url}/artifacts/upload/{token}/{readable(path)}"


def part(server: ServerState, base_url: str, upload_id: int, number: int) -> str:
    """Upload URL of a part."""
    return f"{base_url}/artifacts/part/{signed_urls.sign(server, PART, [upload_id, number])}"


def manifest(server: ServerState, base_url: str, manifest_id: int) -> str:
    """Download URL of a manifest."""
    token = signed_urls.sign(server, MANIFEST, manifest_id)
    return f"{base_url}/artifacts/manifest/{token}/{MANIFEST_NAME}"


def manifest_upload(server: ServerState, base_url: str, manifest_id: int) -> str:
    """Upload URL of a manifest."""
    return f"{base_url}/artifacts/manifest-upload/{signed_urls.sign(server, MANIFEST_UPLOAD, manifest_id)}"
