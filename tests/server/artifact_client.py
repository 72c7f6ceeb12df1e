"""Logs artifacts with wandb's requests, one at a time, to a server in the test process."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from server_harness import ServerHarness
from starlette.testclient import TestClient

from kto_sweep.server import artifact_cleanup
from kto_sweep.server.app import build_app

PLACE = {"entityName": "local", "projectName": "uncategorized"}
HEAD = {
    "version": 1,
    "storagePolicy": "wandb-storage-policy-v1",
    "storagePolicyConfig": {"storageLayout": "V2"},
}


def md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


def digest_of(files: Mapping[str, bytes]) -> str:
    """The digest of an artifact with these files, as wandb computes it."""
    lines = "".join(f"{path}:{md5(content)}\n" for path, content in sorted(files.items()))
    return hashlib.md5(f"wandb-artifact-manifest-v1\n{lines}".encode()).hexdigest()


def manifest_of(files: Mapping[str, bytes], **values: Any) -> bytes:
    contents = {
        path: {"digest": md5(content), "size": len(content), "local_path": f"/home/me/{path}"}
        for path, content in files.items()
    }
    return json.dumps({**HEAD, "contents": contents, **values}).encode()


@dataclass
class ArtifactClient:
    """A client of the harness's server, by HTTP for files."""

    harness: ServerHarness
    http: TestClient = field(init=False)

    def __post_init__(self) -> None:
        self.http = TestClient(
            build_app(self.harness.server, {}, https=False, open_on_loopback=False), base_url="http://test"
        )

    @property
    def stored(self) -> list[Path]:
        """The contents on the server's disk."""
        return sorted(self.harness.server.artifacts.glob("??/*"))

    @property
    def uploads(self) -> list[str]:
        """The files of unfinished uploads."""
        return sorted(path.name for path in (self.harness.server.artifacts / "uploads").glob("*"))

    def clean_up(self) -> None:
        artifact_cleanup.run_once(self.harness.server)

    def create(self, name: str, files: Mapping[str, bytes], **values: Any) -> dict[str, Any]:
        """The artifact of a first request."""
        result = "artifact { id state artifactSequence { latestArtifact { id } } }"
        given = {
            "artifactTypeName": "model",
            "artifactCollectionName": name,
            "digest": digest_of(files),
            "digestAlgorithm": "MANIFEST_MD5",
            "enableDigestDeduplication": True,
        }
        made = self.harness.mutate(
            "createArtifact", "CreateArtifactInput", result, **PLACE, **(given | values)
        )
        return dict(made["artifact"])

    def announce(self, artifact: str, path: str, content: bytes, **values: Any) -> dict[str, Any]:
        """The upload URLs of a file."""
        result = """files { edges { node { uploadUrl storagePath
            uploadMultipartUrls { uploadID uploadUrlParts { partNumber uploadUrl } } artifact { id } } } }"""
        spec = {"artifactID": artifact, "name": path, "md5": md5(content), **values}
        made = self.harness.mutate(
            "createArtifactFiles", "CreateArtifactFilesInput", result, artifactFiles=[spec]
        )
        return dict(made["files"]["edges"][0]["node"])

    def put(self, url: str, content: bytes) -> httpx.Response:
        return self.http.put(url, content=content)

    def manifest_url(self, artifact: str, manifest: bytes, kind: str = "FULL", **values: Any) -> str:
        """The URL to upload a manifest."""
        made = self.harness.mutate(
            "createArtifactManifest",
            "CreateArtifactManifestInput",
            "artifactManifest { id file { uploadUrl } }",
            artifactID=artifact,
            name="wandb_manifest.json",
            digest=md5(manifest),
            runName="",
            type=kind,
            **PLACE,
            **values,
        )
        return str(made["artifactManifest"]["file"]["uploadUrl"])

    def put_files(self, artifact: str, files: Mapping[str, bytes]) -> list[str]:
        """Uploads the files that the server does not have; their paths."""
        sent = []
        for path, content in files.items():
            url = self.announce(artifact, path, content)["uploadUrl"]
            if url:
                assert self.put(url, content).status_code == 200
                sent.append(path)
        return sent

    def put_manifest(
        self, artifact: str, files: Mapping[str, bytes], kind: str = "FULL", **more: Any
    ) -> None:
        manifest = manifest_of(files)
        assert self.put(self.manifest_url(artifact, manifest, kind, **more), manifest).status_code == 200

    def commit(self, artifact: str, fields: str = "id") -> dict[str, Any]:
        made = self.harness.mutate(
            "commitArtifact", "CommitArtifactInput", f"artifact {{ {fields} }}", artifactID=artifact
        )
        return dict(made["artifact"])

    def log(self, name: str, files: Mapping[str, bytes], **values: Any) -> str:
        """The id of a committed artifact."""
        artifact = self.create(name, files, **values)
        if artifact["state"] == "PENDING":
            self.put_files(artifact["id"], files)
            self.put_manifest(artifact["id"], files)
            self.commit(artifact["id"])
        return str(artifact["id"])

    def artifact(self, artifact: str, fields: str) -> dict[str, Any] | None:
        found = self.harness.query(f"query($id: ID!) {{ artifact(id: $id) {{ {fields} }} }}", id=artifact)
        return dict(found["artifact"]) if found["artifact"] else None

    def named(self, name: str, fields: str = "artifact { id }") -> dict[str, Any] | None:
        """The member of a collection at `collection:alias`."""
        query = f"""query($name: String!) {{ project {{
            artifactCollectionMembership(name: $name) {{ {fields} }} }} }}"""
        found = self.harness.query(query, name=name)["project"]["artifactCollectionMembership"]
        return dict(found) if found else None

    def urls(self, artifact: str) -> dict[str, str]:
        """The download URLs of an artifact's files, by path."""
        found = self.artifact(artifact, "files(first: 1000) { edges { node { name directUrl } } }")
        assert found is not None
        return {edge["node"]["name"]: edge["node"]["directUrl"] for edge in found["files"]["edges"]}

    def delete(self, artifact: str, **values: Any) -> None:
        self.harness.mutate(
            "deleteArtifact", "DeleteArtifactInput", "artifact { id }", artifactID=artifact, **values
        )

    def refused(self, name: str, kind: str, result: str, **values: Any) -> str:
        """The message of a mutation that must fail."""
        query = f"mutation M($input: {kind}!) {{ {name}(input: $input) {{ {result} }} }}"
        status, body = self.harness.execute(query, input=values)
        assert status == 200
        return str(body["errors"][0]["message"])

    def part_specs(self, parts: Sequence[bytes]) -> list[dict[str, Any]]:
        return [
            {"partNumber": number, "hexMD5": hashlib.md5(part).hexdigest()}
            for number, part in enumerate(parts, 1)
        ]

    def put_parts(
        self, artifact: str, path: str, parts: Sequence[bytes], order: Sequence[int]
    ) -> dict[str, Any]:
        """Uploads a file's parts, by index in this order; what `complete` takes."""
        node = self.announce(artifact, path, b"".join(parts), uploadPartsInput=self.part_specs(parts))
        upload = node["uploadMultipartUrls"]
        for index in order:
            response = self.put(upload["uploadUrlParts"][index]["uploadUrl"], parts[index])
            assert response.status_code == 200, response.text
            assert response.headers["etag"] == md5(parts[index])
        return {
            "completeMultipartAction": "Complete",
            "completedParts": self.part_specs(parts),
            "artifactID": artifact,
            "storagePath": node["storagePath"],
            "uploadID": upload["uploadID"],
        }

    def complete(self, upload: dict[str, Any]) -> None:
        kind = "CompleteMultipartUploadArtifactInput"
        self.harness.mutate("completeMultipartUploadArtifact", kind, "digest", **upload)
