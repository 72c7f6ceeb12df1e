"""Versions, aliases, lineage and deletion of artifacts, request by request."""

from collections.abc import Iterator
from typing import Any

import pytest
from artifact_client import PLACE, ArtifactClient, digest_of
from server_harness import ServerHarness

from kto_sweep.server import artifact_storage
from kto_sweep.server.store import artifact_contents, artifacts, runs
from kto_sweep.server.store.artifacts import Role
from kto_sweep.server.store.ids import from_global

ONE, TWO, THREE = ({"a": text} for text in (b"1", b"2", b"3"))


@pytest.fixture
def client(harness: ServerHarness) -> Iterator[ArtifactClient]:
    harness.start_run("r")
    client = ArtifactClient(harness)
    with client.http:
        yield client


def aliases(*names: str, collection: str = "a") -> list[dict[str, str]]:
    return [{"artifactCollectionName": collection, "alias": name} for name in names]


def names_of(client: ArtifactClient, member: str) -> list[str]:
    """The aliases of `collection:alias`."""
    found = client.named(member, "aliases { alias }")
    assert found is not None
    return sorted(alias["alias"] for alias in found["aliases"])


def version(client: ArtifactClient, member: str) -> int | None:
    found = client.named(member, "versionIndex")
    return found["versionIndex"] if found else None


def link(client: ArtifactClient, artifact: str, portfolio: str, *names: str) -> dict[str, Any]:
    return dict(
        client.harness.mutate(
            "linkArtifact",
            "LinkArtifactInput",
            "versionIndex artifactMembership { aliases { alias } }",
            artifactID=artifact,
            artifactPortfolioName=portfolio,
            aliases=aliases(*names, collection=portfolio),
            **PLACE,
        )
    )


def test_aliases_move_to_the_new_version(client: ArtifactClient) -> None:
    client.log("a", ONE, aliases=aliases("best"))
    client.log("a", TWO)
    assert names_of(client, "a:v0") == ["best"]
    client.log("a", THREE, aliases=aliases("best", "new"))
    assert [names_of(client, f"a:v{number}") for number in range(3)] == [[], [], ["best", "latest", "new"]]


def test_the_same_content_is_the_same_version_with_the_new_aliases(client: ArtifactClient) -> None:
    first = client.log("a", ONE)
    client.log("a", TWO)
    again = client.create("a", ONE, clientID="second", aliases=aliases("latest", "again"), runName="r")
    assert (again["id"], again["state"]) == (first, "COMMITTED")
    assert names_of(client, "a:v0") == ["again", "latest"]
    assert version(client, "a:v2") is None
    # A reference to what the second client logged finds the artifact too.
    query = "query($id: ID!) { clientIDMapping(clientID: $id) { serverID } }"
    assert client.harness.query(query, id="second")["clientIDMapping"]["serverID"] == first
    assert client.harness.query(query, id="unknown")["clientIDMapping"] is None


def test_without_deduplication_the_same_content_is_a_new_version(client: ArtifactClient) -> None:
    client.log("a", ONE)
    client.log("a", ONE, enableDigestDeduplication=False)
    assert version(client, "a:latest") == 1


def test_an_artifact_whose_logging_broke_off_is_continued(client: ArtifactClient) -> None:
    begun = client.create("a", ONE, clientID="c", metadata='{"old": 1}', aliases=aliases("first"))["id"]
    assert client.create("a", ONE, clientID="c")["id"] == begun
    assert client.create("a", ONE, clientID="d", metadata='{"new": 1}')["id"] == begun
    client.put_files(begun, ONE)
    client.put_manifest(begun, ONE)
    client.commit(begun)
    found = client.artifact(begun, "versionIndex metadata")
    assert found == {"versionIndex": 0, "metadata": '{"new": 1}'}
    assert names_of(client, "a:v0") == ["first", "latest"]


def test_the_number_of_a_deleted_version_is_not_used_again(client: ArtifactClient) -> None:
    client.log("a", ONE)
    second = client.log("a", TWO)
    refuse = ("deleteArtifact", "DeleteArtifactInput", "artifact { id }")
    assert "has the aliases latest" in client.refused(*refuse, artifactID=second)
    client.delete(second, deleteAliases=True)
    assert (version(client, "a:latest"), names_of(client, "a:latest")) == (0, [])
    client.log("a", THREE)
    assert version(client, "a:latest") == 2


def test_an_incremental_artifact_adds_to_its_base(client: ArtifactClient) -> None:
    base = client.log("a", {"a": b"1", "b": b"1"})
    client.log("a", THREE)
    added = {"b": b"2", "c": b"2"}
    made = client.create("a", added)["id"]
    client.put_files(made, added)
    client.put_manifest(made, added, kind="INCREMENTAL", baseArtifactID=base)
    whole = {"a": b"1", **added}
    assert client.commit(made, "versionIndex digest size fileCount") == {
        "versionIndex": 2,
        "digest": digest_of(whole),
        "size": 3,
        "fileCount": 3,
    }
    assert {path: client.http.get(url).content for path, url in client.urls(made).items()} == whole


def test_the_parts_of_several_processes_are_one_artifact(client: ArtifactClient) -> None:
    parts = [{"a": b"1"}, {"b": b"2"}]
    ids = []
    for part, more in zip(parts, ({"description": "text"}, {}), strict=True):
        made = client.create("a", part, distributedID="d", **more)["id"]
        client.put_files(made, part)
        client.put_manifest(made, part, kind="PATCH")
        ids.append(made)
    assert ids[0] == ids[1]
    assert client.commit(ids[0], "digest fileCount description") == {
        "digest": digest_of(parts[0] | parts[1]),
        "fileCount": 2,
        "description": "text",
    }
    following = client.create("a", {"c": b"3"}, distributedID="d")
    assert following["id"] != ids[0], "the next parts are a new version"
    assert client.log("a", parts[0] | parts[1]) == ids[0], "one process logs the same content"


def test_a_link_has_its_own_versions_and_aliases(client: ArtifactClient) -> None:
    client.log("a", ONE)
    second = client.log("a", TWO, aliases=aliases("source"))
    assert link(client, second, "best", "prod")["versionIndex"] == 0
    assert link(client, second, "best", "again")["versionIndex"] == 0, "it is linked already"
    assert names_of(client, "best:v0") == ["again", "latest", "prod"]
    assert names_of(client, "a:v1") == ["latest", "source"]
    client.delete(second, deleteAliases=True)
    assert version(client, "best:latest") is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"artifactPortfolioName": "a"}, "is the name of logged artifacts"),
        ({"artifactPortfolioName": "taken"}, "holds artifacts of type 'data', not 'model'"),
        (
            {"artifactPortfolioName": "x", "projectName": "wandb-registry-model"},
            "does not keep organizations and their registries",
        ),
        ({"artifactPortfolioName": ""}, "needs a name"),
        ({"artifactPortfolioName": "x", "artifactID": None, "clientID": "unknown"}, "not complete"),
        ({"artifactPortfolioName": "x", "aliases": aliases("v1")}, "is a version, not an alias"),
    ],
)
def test_links_that_are_refused(client: ArtifactClient, values: dict[str, Any], reason: str) -> None:
    artifact = client.log("a", ONE)
    link(client, client.log("other", ONE, artifactTypeName="data"), "taken")
    given = {"artifactID": artifact, **PLACE} | values
    assert reason in client.refused("linkArtifact", "LinkArtifactInput", "versionIndex", **given)
    assert client.named("x:latest") is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"artifactTypeName": "data"}, "has the type 'model', not 'data'"),
        ({"artifactCollectionName": "port"}, "holds links to artifacts"),
        ({"artifactCollectionName": "x" * 200}, "a name and a type of 1 to 128 characters"),
        ({"aliases": aliases("a/b")}, "is not an alias"),
        ({"aliases": aliases("v12")}, "is a version, not an alias"),
        ({"metadata": "[1"}, "metadata is not a JSON object"),
        ({"ttlDurationSeconds": 0}, "is not a time to live"),
        ({"tags": [{"tagName": ""}]}, "a tag has 1 to 128 characters"),
        ({"storageRegion": "moon"}, "no storage region"),
    ],
)
def test_artifacts_that_are_refused(client: ArtifactClient, values: dict[str, Any], reason: str) -> None:
    link(client, client.log("a", ONE), "port")
    given = {
        "artifactTypeName": "model",
        "artifactCollectionName": "a",
        "digest": "new",
        "digestAlgorithm": "MANIFEST_MD5",
        **PLACE,
    }
    message = client.refused("createArtifact", "CreateArtifactInput", "artifact { id }", **(given | values))
    assert reason in message


@pytest.mark.parametrize("delete_artifacts", [False, True])
def test_deleting_a_run_keeps_its_artifacts_unless_asked(
    client: ArtifactClient, delete_artifacts: bool
) -> None:
    client.harness.start_run("other")
    artifact = client.log("a", ONE, runName="r")
    used = client.log("b", TWO, runName="other")
    for name, made in (("r", used), ("other", artifact)):
        client.harness.mutate(
            "useArtifact", "UseArtifactInput", "artifact { id }", artifactID=made, runName=name, **PLACE
        )
    run = client.harness.run(
        "r", "id outputArtifacts { edges { node { id } } } inputArtifacts { totalCount }"
    )
    assert run["outputArtifacts"]["edges"] == [{"node": {"id": artifact}}]
    assert run["inputArtifacts"]["totalCount"] == 1
    values = {"deleteArtifacts": True} if delete_artifacts else {}
    client.harness.mutate("deleteRun", "DeleteRunInput", "success", id=run["id"], **values)
    lineage = "createdBy { ... on Run { name } } usedBy { edges { node { name } } }"
    left = client.artifact(artifact, lineage)
    if delete_artifacts:
        assert left is None
    else:
        assert left == {"createdBy": None, "usedBy": {"edges": [{"node": {"name": "other"}}]}}
    assert client.artifact(used, lineage) == {"createdBy": {"name": "other"}, "usedBy": {"edges": []}}


def test_a_pages_view_of_a_runs_artifacts(client: ArtifactClient) -> None:
    artifact = client.log("a", {"x": b"123", "sub/y": b"4567"}, aliases=aliases("best"), runName="r")
    client.create("a", THREE, runName="r")  # not complete: not shown
    reader = client.harness.server.database.reader()
    run = runs.find_by_path(reader, "local", "uncategorized", "r")
    assert run is not None
    [summary] = artifacts.summaries_of_run(reader, run.id, 10)
    assert (summary.role, summary.name, summary.type, summary.version) == (Role.LOGGED, "a", "model", 0)
    assert (sorted(summary.aliases), summary.size, summary.file_count) == (["best", "latest"], 7, 2)
    assert summary.id == from_global("Artifact", artifact)
    found = artifacts.get(reader, summary.id)
    assert found is not None
    assert found.manifest_id is not None
    entry = artifact_contents.find_entry(reader, found.manifest_id, "sub/y")
    assert entry is not None
    content = artifact_storage.Reader(client.harness.server, entry.digest)
    assert b"".join(content.read(0, content.size)) == b"4567"


def test_pages_of_versions_and_files(client: ArtifactClient) -> None:
    files = {f"{number:03}": b"x" for number in range(120)}
    artifact = client.log("a", files)
    query = """query($id: ID!, $after: String) { artifact(id: $id) { files(first: 50, after: $after) {
        totalCount pageInfo { endCursor hasNextPage } edges { node { name } } } } }"""
    names, after = [], None
    while True:
        page = client.harness.query(query, id=artifact, after=after)["artifact"]["files"]
        names += [edge["node"]["name"] for edge in page["edges"]]
        after = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
    assert (names, page["totalCount"]) == (sorted(files), 120)


def test_versions_are_filtered_and_ordered(client: ArtifactClient) -> None:
    for files, loss in ((ONE, "3"), (TWO, "NaN"), (THREE, "1")):
        client.log("a", files, metadata=f'{{"loss": {loss}}}', tags=[{"tagName": f"t{loss}"}])
    query = """query($order: String, $filters: JSONString) { project { artifactCollection(name: "a") {
        artifacts(order: $order, filters: $filters) { totalCount edges { version } } } } }"""

    def versions(**values: str) -> list[str]:
        found = client.harness.query(query, **values)["project"]["artifactCollection"]["artifacts"]
        assert found["totalCount"] == len(found["edges"])
        return [edge["version"] for edge in found["edges"]]

    assert versions(filters='{"state": "COMMITTED"}') == ["v2", "v1", "v0"]
    assert versions(order="+createdAt") == ["v0", "v1", "v2"]
    assert versions(filters='{"metadata.loss": {"$lt": 2}}') == ["v2"]
    assert versions(filters='{"tags": "t3"}') == ["v0"]
    for values in ({"order": "nosuch"}, {"filters": '{"nosuch": "x"}'}):
        _, body = client.harness.execute(query, **values)
        assert "cannot filter or sort versions of an artifact by 'nosuch'" in body["errors"][0]["message"]


def test_collections_are_filtered_and_ordered(client: ArtifactClient) -> None:
    for name, kind in (("b", "model"), ("a", "model"), ("c", "data")):
        client.log(name, ONE, artifactTypeName=kind)
    query = """query($order: String, $filters: JSONString) { project {
        artifactCollections(order: $order, filters: $filters) { totalCount edges { node { name } } }
        artifactType(name: "model") { artifactCollections(order: $order, filters: $filters) {
            totalCount edges { node { name } } } } } }"""

    def names(**values: str) -> tuple[list[str], list[str]]:
        project = client.harness.query(query, **values)["project"]
        found = (project["artifactCollections"], project["artifactType"]["artifactCollections"])
        every, models = ([edge["node"]["name"] for edge in page["edges"]] for page in found)
        assert [page["totalCount"] for page in found] == [len(every), len(models)]
        return every, models

    assert names() == (["c", "a", "b"], ["a", "b"])
    assert names(order="name") == (["a", "b", "c"], ["a", "b"])
    assert names(filters='{"name": {"$regex": "^[bc]"}}') == (["c", "b"], ["b"])
    assert names(filters='{"type": "data"}', order="-created_at") == (["c"], [])
