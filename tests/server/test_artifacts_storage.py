"""Files of artifacts: stored once, verified, signed URLs, uploads in parts, deleted when unused."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifact_client import ArtifactClient, digest_of, manifest_of, md5
from server_harness import ServerHarness

from kto_sweep.server import artifact_cleanup, received_file
from kto_sweep.server.errors import ContentDamaged
from kto_sweep.server.received_file import BLOCK, SMALL_UPLOAD
from kto_sweep.server.signed_urls import URL_SECONDS
from kto_sweep.server.store import artifact_contents

FILES = {"a.bin": b"weights", "sub/b.bin": b"config", "copy.bin": b"weights"}
LARGE = bytes(range(256)) * (BLOCK // 100)
"""More than two blocks, the last of them short."""


@pytest.fixture
def client(harness: ServerHarness) -> Iterator[ArtifactClient]:
    harness.start_run("r")
    client = ArtifactClient(harness)
    with client.http:
        yield client


def test_equal_contents_are_one_file_and_are_not_uploaded_again(client: ArtifactClient) -> None:
    first = client.create("a", FILES)["id"]
    assert client.put_files(first, FILES) == ["a.bin", "sub/b.bin"]
    client.put_manifest(first, FILES)
    client.commit(first)
    assert len(client.stored) == 2
    second = client.create("other", {"x": b"weights"})["id"]
    assert client.put_files(second, {"x": b"weights"}) == []
    assert client.uploads == []


def test_the_manifest_and_the_files_come_back_as_they_were_sent(client: ArtifactClient) -> None:
    files = {**FILES, "large": LARGE, "empty": b""}
    artifact = client.log("a", files)
    found = client.artifact(artifact, "size fileCount digest currentManifest { file { directUrl } }")
    assert found is not None
    manifest = client.http.get(found["currentManifest"]["file"]["directUrl"]).json()
    assert manifest["storagePolicyConfig"] == {"storageLayout": "V2"}
    assert {path: entry["digest"] for path, entry in manifest["contents"].items()} == {
        path: md5(content) for path, content in files.items()
    }
    assert not any("local_path" in entry for entry in manifest["contents"].values())
    assert (found["size"], found["fileCount"]) == (sum(map(len, files.values())), len(files))
    assert found["digest"] == digest_of(files)
    for path, url in client.urls(artifact).items():
        response = client.http.get(url)
        assert response.content == files[path]
        assert response.headers["content-disposition"] == "attachment"


@pytest.mark.parametrize(
    ("asked", "status", "start", "stop"),
    [
        ("bytes=0-4", 206, 0, 5),
        (f"bytes={BLOCK - 2}-{BLOCK + 1}", 206, BLOCK - 2, BLOCK + 2),
        ("bytes=-3", 206, len(LARGE) - 3, len(LARGE)),
        (f"bytes={BLOCK}-", 206, BLOCK, len(LARGE)),
        (f"bytes=10-{len(LARGE) + 9}", 206, 10, len(LARGE)),
        ("lines=1-2", 200, 0, len(LARGE)),
        (f"bytes={len(LARGE)}-", 416, 0, 0),
    ],
)
def test_ranges(client: ArtifactClient, asked: str, status: int, start: int, stop: int) -> None:
    url = client.urls(client.log("a", {"large": LARGE}))["large"]
    response = client.http.get(url, headers={"range": asked})
    assert response.status_code == status
    if status == 206:
        assert response.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(LARGE)}"
    if status != 416:
        assert response.content == LARGE[start:stop]


def test_content_with_another_digest_is_refused(client: ArtifactClient) -> None:
    artifact = client.create("a", FILES)["id"]
    url = client.announce(artifact, "a.bin", b"weights")["uploadUrl"]
    response = client.put(url, b"changed")
    assert response.status_code == 400
    assert "was announced" in response.text
    assert client.stored == []
    assert client.uploads == []
    assert client.put(url, b"weights").status_code == 200


def test_an_artifact_with_a_missing_file_or_manifest_is_not_committed(client: ArtifactClient) -> None:
    artifact = client.create("a", FILES)["id"]
    refuse = ("commitArtifact", "CommitArtifactInput", "artifact { id }")
    assert "manifest of the artifact has not arrived" in client.refused(*refuse, artifactID=artifact)
    client.put_files(artifact, {"a.bin": b"weights"})
    client.put_manifest(artifact, FILES)
    message = client.refused(*refuse, artifactID=artifact)
    assert "1 files of the artifact have not arrived: sub/b.bin" in message
    assert client.named("a:latest") is None
    client.put_files(artifact, FILES)
    assert client.commit(artifact, "versionIndex state") == {"versionIndex": 0, "state": "COMMITTED"}
    assert client.commit(artifact, "versionIndex") == {"versionIndex": 0}, (
        "a repeated request changes nothing"
    )


@pytest.mark.parametrize(
    "path", ["../a", "/etc/passwd", "a/../../b", r"a\..\..\b", "a//b", "./a", "", "a/", "x" * 2000, "a\0"]
)
def test_paths_that_leave_the_folder_of_a_download_are_refused(client: ArtifactClient, path: str) -> None:
    artifact = client.create("a", FILES)["id"]
    spec = {"artifactID": artifact, "name": path, "md5": md5(b"x")}
    kind = ("createArtifactFiles", "CreateArtifactFilesInput", "files { edges { node { id } } }")
    assert "not a valid path" in client.refused(*kind, artifactFiles=[spec])
    manifest = manifest_of({path: b"x"})
    response = client.put(client.manifest_url(artifact, manifest), manifest)
    assert response.status_code == 400
    assert "not a valid path" in response.json()["errors"][0]["message"]


@pytest.mark.parametrize("digest", ["../../x", "", "AAAA", md5(b"x")[:-2], md5(b"x")[:-3] + "h==", "%" * 24])
def test_what_is_not_a_digest_names_no_file(client: ArtifactClient, digest: str) -> None:
    artifact = client.create("a", FILES)["id"]
    spec = {"artifactID": artifact, "name": "x", "md5": digest}
    kind = ("createArtifactFiles", "CreateArtifactFilesInput", "files { edges { node { id } } }")
    assert "is not an MD5 in base64" in client.refused(*kind, artifactFiles=[spec])


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"contents": []}', b'{"contents": {"a": {}}}', b"[" * 100_000, b"\xff"]
)
def test_what_is_not_a_manifest_is_refused(client: ArtifactClient, body: bytes) -> None:
    artifact = client.create("a", FILES)["id"]
    response = client.put(client.manifest_url(artifact, body), body)
    assert response.status_code == 400
    assert client.put(client.manifest_url(artifact, body), body + b" ").status_code == 400


def test_a_url_permits_one_use_of_one_file_for_a_week(client: ArtifactClient) -> None:
    artifact = client.log("a", FILES)
    pending = client.create("b", {"x": b"new"})["id"]
    download, upload = client.urls(artifact)["a.bin"], client.announce(pending, "x", b"new")["uploadUrl"]
    token = download.partition("/file/")[2].partition("/")[0]
    for path in (f"upload/{token}/x", f"manifest/{token}", f"file/{token[:-2]}xx/x", "file/x/x"):
        assert client.http.get(f"/artifacts/{path}").status_code in (404, 405)
        assert client.http.put(f"/artifacts/{path}", content=b"weights").status_code in (404, 405)
    assert client.http.get(download).status_code == 200
    # Tokens are signed with the machine's clock, not the harness's.
    client.harness.clock.set(time.time() - client.harness.clock() + URL_SECONDS + 60)
    assert client.http.get(download).status_code == 404
    assert client.put(upload, b"new").status_code == 404


def test_a_single_file_needs_the_key_and_must_be_of_the_artifact(client: ArtifactClient) -> None:
    artifact, other = client.log("a", FILES), client.log("b", {"x": b"other"})
    name = client.stored[0].name if client.stored[0].read_bytes() == b"weights" else client.stored[1].name
    key = ("api", client.harness.server.key)

    def get(artifact: str, digest: str, auth: tuple[str, str] | None) -> int:
        path = f"/artifactsV2/default/local/uncategorized/a/{artifact}/{artifact}/{digest}/a.bin"
        return client.http.get(path, auth=auth).status_code

    assert get(artifact, name, key) == 200
    assert get(artifact, name, None) == get(artifact, name, ("api", "wrong")) == 401
    assert get(other, name, key) == 404
    assert get(artifact, "0" * 32, key) == 404
    assert get(artifact, "..", key) in (400, 404)
    assert get("nonsense", name, key) == 400


@pytest.mark.parametrize("damage", ["first block", "last block", "short", "gone"])
def test_a_damaged_file_is_not_served_and_the_next_upload_replaces_it(
    client: ArtifactClient, damage: str
) -> None:
    artifact = client.log("a", {"large": LARGE})
    url = client.urls(artifact)["large"]
    [path] = client.stored
    if damage == "gone":
        path.unlink()
    elif damage == "short":
        os.truncate(path, 10)
    else:
        with path.open("r+b") as file:
            file.seek(0 if damage == "first block" else len(LARGE) - 1)
            file.write(b"!")
    if damage == "last block":
        with pytest.raises(RuntimeError, match="already started") as caught:
            client.http.get(url)  # the connection breaks before the damaged bytes
        assert isinstance(caught.value.__cause__, ContentDamaged)
    response = client.http.get(url)
    assert response.status_code == 410
    assert "missing or damaged" in response.text
    assert str(path) in response.text
    again = client.create("b", {"x": LARGE})["id"]
    assert client.put_files(again, {"x": LARGE}) == ["x"]
    assert client.http.get(url).content == LARGE


def test_an_upload_that_does_not_fit_on_the_disk_is_refused(
    client: ArtifactClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = bytes(SMALL_UPLOAD + 1)
    artifact = client.create("a", {"large": large})["id"]
    url = client.announce(artifact, "large", large)["uploadUrl"]
    monkeypatch.setattr(received_file, "free_bytes", lambda folder: 200 << 20)
    response = client.put(url, large)
    assert response.status_code == 507
    assert "200 MiB free" in response.text
    assert client.put_files(artifact, FILES) == ["a.bin", "sub/b.bin"], "small files are not refused"
    monkeypatch.undo()
    assert client.put(url, large).status_code == 200


PARTS = [b"a" * 2000, b"b" * 2000, b"c" * 2000, b"d" * 7]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 0, 2]])
def test_parts_arrive_in_any_order(client: ArtifactClient, order: list[int]) -> None:
    files = {"large": b"".join(PARTS)}
    artifact = client.create("a", files)["id"]
    upload = client.put_parts(artifact, "large", PARTS, order)
    client.complete(upload)
    client.complete(upload)  # its answer was lost
    assert client.uploads == []
    client.put_manifest(artifact, files)
    client.commit(artifact)
    assert client.http.get(client.urls(artifact)["large"]).content == files["large"]


def test_parts_that_are_wrong_or_missing_are_refused(client: ArtifactClient) -> None:
    files = {"large": b"".join(PARTS)}
    artifact = client.create("a", files)["id"]
    upload = client.put_parts(artifact, "large", PARTS, [0, 3])
    kind = ("completeMultipartUploadArtifact", "CompleteMultipartUploadArtifactInput", "digest")
    assert "2 parts have not arrived, the first is part 2" in client.refused(*kind, **upload)
    node = client.announce(artifact, "large", files["large"], uploadPartsInput=client.part_specs(PARTS))
    urls = [part["uploadUrl"] for part in node["uploadMultipartUrls"]["uploadUrlParts"]]
    assert client.put(urls[0], PARTS[1]).status_code == 400
    assert client.put(urls[1], PARTS[0] + b"x").status_code == 400
    assert client.stored == []
    # Every part is what was announced, but the whole is not.
    wrong = [PARTS[1], *PARTS[1:]]
    node = client.announce(artifact, "large", files["large"], uploadPartsInput=client.part_specs(wrong))
    for part, content in zip(node["uploadMultipartUrls"]["uploadUrlParts"], wrong, strict=True):
        assert client.put(part["uploadUrl"], content).status_code == 200
    upload["uploadID"] = node["uploadMultipartUrls"]["uploadID"]
    assert "was announced" in client.refused(*kind, **upload)
    assert client.stored == []


def test_files_stay_while_an_artifact_needs_them(client: ArtifactClient) -> None:
    first, second = client.log("a", FILES), client.log("b", {"x": b"weights"})
    pending = client.create("c", {"y": b"config"})["id"]
    client.announce(pending, "y", b"config")
    client.delete(first, deleteAliases=True)
    client.clean_up()
    assert {path.read_bytes() for path in client.stored} == {b"weights", b"config"}
    client.put_manifest(pending, {"y": b"config"})
    client.commit(pending)
    client.delete(second, deleteAliases=True)
    client.clean_up()
    assert [path.read_bytes() for path in client.stored] == [b"config"]
    assert client.http.get(client.urls(pending)["y"]).content == b"config"


def test_an_abandoned_upload_is_deleted_after_a_week_and_one_under_way_is_not(client: ArtifactClient) -> None:
    files = {"large": b"".join(PARTS)}
    abandoned, active = client.create("a", files)["id"], client.create("b", FILES)["id"]
    client.put_parts(abandoned, "large", PARTS, [0, 3])
    client.harness.clock.time += URL_SECONDS - 60
    client.put_files(active, FILES)
    client.clean_up()
    assert len(client.uploads) == 2
    client.harness.clock.time += 120
    client.clean_up()
    assert client.uploads == []
    assert client.artifact(abandoned, "id") is None
    assert len(client.stored) == 2
    client.put_manifest(active, FILES)
    client.commit(active)


def test_what_a_server_that_died_left_is_removed_at_the_next_start(client: ArtifactClient) -> None:
    artifact = client.log("a", FILES)
    pending = client.create("b", {"large": b"".join(PARTS)})["id"]
    upload = client.put_parts(pending, "large", PARTS, [0, 1, 3])
    orphan = client.harness.server.artifacts / "ff" / ("f" * 32)
    orphan.parent.mkdir()
    orphan.write_bytes(b"renamed, but not recorded")
    (client.harness.server.artifacts / "uploads" / "00.part").write_bytes(b"half")
    (client.harness.server.artifacts / "uploads" / "999.parts").write_bytes(b"of a deleted artifact")
    artifact_cleanup.after_start(client.harness.server)
    assert not orphan.exists()
    assert client.uploads == [f"{upload['uploadID']}.last", f"{upload['uploadID']}.parts"]
    assert client.http.get(client.urls(artifact)["a.bin"]).content == b"weights"


@pytest.mark.parametrize("moment", ["add_content", "replace"])
def test_an_upload_in_parts_is_completed_after_the_server_died_in_it(
    client: ArtifactClient, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    files = {"large": b"".join(PARTS)}
    artifact = client.create("a", files)["id"]
    upload = client.put_parts(artifact, "large", PARTS, [0, 1, 2, 3])

    def die(*args: object) -> None:
        raise OSError("the server dies here")

    with monkeypatch.context() as patched:
        patched.setattr(*((artifact_contents, moment) if moment == "add_content" else (Path, moment)), die)
        query = "completeMultipartUploadArtifact", "CompleteMultipartUploadArtifactInput", "digest"
        assert "dies here" in client.refused(*query, **upload)
    artifact_cleanup.after_start(client.harness.server)
    client.complete(upload)
    client.put_manifest(artifact, files)
    client.commit(artifact)
    assert client.http.get(client.urls(artifact)["large"]).content == files["large"]


def test_an_artifact_expires_unless_it_is_linked(client: ArtifactClient) -> None:
    kept = client.log("kept", {"x": b"1"}, ttlDurationSeconds=60)
    lost = client.log("lost", {"x": b"2"}, ttlDurationSeconds=60)
    client.harness.mutate(
        "linkArtifact",
        "LinkArtifactInput",
        "versionIndex",
        artifactID=kept,
        artifactPortfolioName="best",
        entityName="local",
        projectName="uncategorized",
    )
    client.clean_up()
    assert client.artifact(lost, "ttlDurationSeconds ttlIsInherited") == {
        "ttlDurationSeconds": 60,
        "ttlIsInherited": False,
    }
    client.harness.clock.time += 61
    client.clean_up()
    assert client.artifact(lost, "id") is None
    assert client.artifact(kept, "id") is not None
    assert [path.read_bytes() for path in client.stored] == [b"1"]
