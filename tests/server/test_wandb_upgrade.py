"""Fails when a new wandb sends documents that the server does not understand, before a user's run does."""

import pytest
from graphql import parse, validate
from wandb.apis.public import files, runs
from wandb_documents import Document, installed_documents

from kto_sweep.server.graphql_api import schema
from kto_sweep.server.refused import FAMILIES, family_of

DOCUMENTS = installed_documents()


def problems(document: Document) -> list[str]:
    """What the server's schema lacks for the document."""
    # wandb fills in two kinds of placeholders before it sends a document.
    text = document.text.replace("_PROJECT_QUERY_", "project { id name entity { id name } }")
    if "...RunFilesFragment" in text:
        text += files.FILE_FRAGMENT
    return [error.message for error in validate(schema(), parse(text))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: f"{document.source}:{document.names[0]}")
def test_a_document_is_understood_or_refused_as_what_the_server_does_not_keep(document: Document) -> None:
    assert family_of(document.tree) is not None or problems(document) == []


def test_each_family_that_is_refused_is_still_in_wandb() -> None:
    refused = {family_of(document.tree) for document in DOCUMENTS if problems(document)}
    assert refused >= set(FAMILIES)


@pytest.mark.parametrize("fragment", [runs.RUN_FRAGMENT, runs.LIGHTWEIGHT_RUN_FRAGMENT])
def test_fragments_that_queries_are_built_from_are_valid(fragment: str) -> None:
    name = fragment.split()[1]
    text = f'query {{ project {{ run(name: "r") {{ projectId ...{name} }} }} }} {fragment}'
    assert [error.message for error in validate(schema(), parse(text))] == []


def test_the_documents_of_runs_artifacts_and_sweeps_were_found_and_are_understood() -> None:
    understood = [document for document in DOCUMENTS if not problems(document)]
    from_go = {name for document in understood if document.source == "wandb-core" for name in document.names}
    assert {
        "UpsertBucket",
        "CreateRunFiles",
        "RunResumeStatus",
        "Viewer",
        "HistoryPage",
        "StopRun",
        "RewindRun",
        "CreateArtifact",
        "CreateArtifactManifest",
        "CreateArtifactFiles",
        "CommitArtifact",
        "UseArtifact",
        "LinkArtifact",
    } <= from_go
    from_python = {name for document in understood for name in document.names} - from_go
    assert {
        "UpsertSweep",
        "CreateAgent",
        "Heartbeat",
        "GetSweep",
        "GetSweeps",
        "GetProjects",
        "ArtifactByID",
        "ArtifactMembershipByName",
        "ProjectArtifacts",
        "RunOutputArtifacts",
    } <= from_python
    assert len(understood) >= 100
