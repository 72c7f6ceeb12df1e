"""What the server does not keep: the SDK says so in words, and so does the page of the run that asked."""

import asyncio
import subprocess
from collections.abc import AsyncIterator

import pytest
from artifact_client import ArtifactClient
from machine import ROOT, Machine
from sdk_scripts import run_script
from server_harness import ServerHarness

from kto_sweep.server import received_file, uploads
from kto_sweep.server.errors import BodyTooLarge, DiskFull
from kto_sweep.server.refused import (
    ACCOUNTS,
    AUTOMATIONS,
    CHARTS,
    FAMILIES,
    LAUNCH,
    REGISTRIES,
    REPORTS,
    Family,
)
from kto_sweep.server.store import files, runs

CALLS = """
from wandb.automations import DoNothing, OnRunMetric, RunEvent
import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

api = wandb.Api()
api.create_project("tests", "acme")
metric = RunEvent.metric("loss") > 1

def error(call):
    try:
        return f"no error: {call()!r}"
    except Exception as problem:
        return str(problem)

report({name: error(call) for name, call in {
    "queue": lambda: api.create_run_queue("q", "local-container", entity="acme"),
    "queue change": lambda: api.upsert_run_queue("q", {}, "local-container", entity="acme"),
    "queue items": lambda: api.run_queue("acme", "q").items,
    "automation": lambda: api.create_automation(
        OnRunMetric(scope=api.project("tests", "acme"), filter=metric) >> DoNothing(), name="a"),
    "automations": lambda: list(api.automations()),
    "integrations": lambda: list(api.slack_integrations()),
    "report": lambda: reports.Report(entity="acme", project="tests", title="r").save(),
    "reports": lambda: list(api.reports("acme/tests")),
    "view": lambda: workspaces.Workspace(entity="acme", project="tests", name="v").save(),
    "user": lambda: api.create_user("a@b.c"),
    "chart": lambda: api.create_custom_chart("acme", "c", "c", "vega2", "private", {}),
    "registries": lambda: list(api.registries()),
    "registry": lambda: api.registry("r").load(),
    "link": lambda: wandb.Artifact("a", "model").link("wandb-registry-model/a"),
    "new registry": lambda: api.create_registry("r", "organization"),
}.items()})
"""


def test_the_sdk_says_what_the_server_does_not_keep(machine: Machine) -> None:
    told = run_script(machine, CALLS)
    expected = {
        LAUNCH: ["queue", "queue change", "queue items"],
        AUTOMATIONS: ["automation", "automations", "integrations"],
        REPORTS: ["report", "reports", "view"],
        ACCOUNTS: ["user"],
        CHARTS: ["chart"],
        REGISTRIES: ["registries", "registry", "link", "new registry"],
    }
    assert set(expected) == set(FAMILIES)
    assert told == {call: family.sentence for family, calls in expected.items() for call in calls}


def test_the_launch_agent_says_so_on_the_terminal(machine: Machine) -> None:
    environ = machine.environment | {"WANDB_SILENT": "false"}
    command = ["wandb", "launch-agent", "-q", "default", "-e", "acme"]
    done = subprocess.run(
        command, cwd=machine.folder, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert LAUNCH.sentence in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_new_sdks_unknown_request_is_named(harness: ServerHarness) -> None:
    status, body = harness.execute("query { dreams { id } }")
    assert status == 400
    (error,) = body["errors"]
    assert error["message"] == (
        "this server does not understand the request; Cannot query field 'dreams' on type 'Query'."
    )


def run_alerts(harness: ServerHarness, path: str = "acme/tests/r1") -> list[tuple[str, str, str]]:
    reader = harness.server.database.reader()
    run = runs.find_by_path(reader, *path.split("/"))
    assert run is not None
    return [(alert.severity, alert.title, alert.text) for alert in files.alerts(reader, run.id)]


@pytest.fixture
def run_named_r1(harness: ServerHarness) -> None:
    values = {"name": "r1", "entityName": "acme", "modelName": "tests", "host": "box"}
    harness.mutate("upsertBucket", "UpsertBucketInput", "bucket { id }", **values)


@pytest.mark.usefixtures("run_named_r1")
def test_the_run_that_asked_shows_a_refused_request_once(harness: ServerHarness) -> None:
    query = """mutation Dream($input: DreamInput!) { createDream(input: $input) { id } }"""
    asked = {"entityName": "acme", "projectName": "tests", "runName": "r1"}
    for _ in range(2):
        assert harness.execute(query, input=asked)[0] == 400
        assert harness.execute(query, input=asked | {"runName": "other"})[0] == 400
    ((severity, title, text),) = run_alerts(harness)
    assert (severity, title) == ("WARN", "Not kept")
    assert text.startswith("createDream: this server does not understand the request; ")


@pytest.mark.usefixtures("run_named_r1")
def test_the_run_that_asked_shows_a_request_that_failed(harness: ServerHarness) -> None:
    query = """mutation Files($entityName: String!, $projectName: String!, $runName: String!,
        $files: [String!]!) { createRunFiles(input: {entityName: $entityName, projectName: $projectName,
        runName: $runName, files: $files}) { files { name } } }"""
    asked = {"entityName": "acme", "projectName": "tests", "runName": "r1"}
    assert "errors" in harness.execute(query, files=[""], **asked)[1]
    ((_, _, text),) = run_alerts(harness)
    assert text.startswith("createRunFiles: a request may announce at most 1000 files")


@pytest.mark.usefixtures("run_named_r1")
@pytest.mark.parametrize(
    ("error", "reason"),
    [(BodyTooLarge, "a file may have at most "), (DiskFull, "the server's disk has 5")],
)
def test_the_run_shows_a_file_that_was_not_kept(
    harness: ServerHarness, monkeypatch: pytest.MonkeyPatch, error: type[Exception], reason: str
) -> None:
    if error is BodyTooLarge:
        monkeypatch.setattr(uploads, "MAX_FILE", 8)
    else:
        monkeypatch.setattr(received_file, "free_bytes", lambda folder: 5 << 20)
    asked = {"entity_name": "acme", "project_name": "tests", "run_name": "r1", "files": ["model.bin"]}
    _, (file,) = harness.server.database.write(lambda c: uploads.announce(c, harness.server, asked))

    async def chunks() -> AsyncIterator[bytes]:
        yield b"123456789"

    with pytest.raises(error):
        asyncio.run(uploads.store(harness.server, file, chunks(), 2 << 20))
    ((severity, title, text),) = run_alerts(harness)
    assert (severity, title) == ("WARN", "Not kept")
    assert text.startswith(f"model.bin: {reason}")


def test_the_run_shows_an_artifact_that_could_not_be_saved(
    harness: ServerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`log_artifact` does not wait, so the SDK says nothing."""
    harness.start_run("r")
    client = ArtifactClient(harness)
    files_of = {"a.bin": b"weights"}
    with client.http:
        artifact = client.create("big", files_of, runName="r")["id"]
        url = client.announce(artifact, "a.bin", b"weights")["uploadUrl"]
        monkeypatch.setattr(received_file, "SMALL_UPLOAD", 0)
        monkeypatch.setattr(received_file, "free_bytes", lambda folder: 200 << 20)
        for _ in range(2):  # the SDK tries again
            assert client.put(url, b"weights").status_code == 507
        commit = (
            "mutation($input: CommitArtifactInput!) { commitArtifact(input: $input) { artifact { id } } }"
        )
        assert "errors" in harness.execute(commit, input={"artifactID": artifact})[1]
    texts = [text for _, _, text in run_alerts(harness, "local/uncategorized/r")]
    assert [text.split(": ")[0] for text in texts] == ["artifact big", "commitArtifact"]
    assert "200 MiB free" in texts[0]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_docs_name_what_is_not_kept(family: Family) -> None:
    page = (ROOT / "docs" / "wandb.md").read_text(encoding="utf-8")
    assert f"| {family.name} | {family.instead} |" in page
