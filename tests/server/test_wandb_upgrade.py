"""Fails when a new wandb sends documents that the server does not understand, before a user's run does."""

import pytest
from graphql import parse, validate
from wandb.apis.public import files, runs
from wandb_documents import Document, installed_documents

from kto_sweep.server.graphql_api import schema

UNSUPPORTED_FOLDERS = (
    "apis/public/jobs.py",
    "apis/public/reports.py",
    "automations/",
    "sdk/launch/",
)
"""Unsupported areas: launch queues, reports, automations."""
UNSUPPORTED = {
    # jobs of launch queues
    "ArtifactOfType",
    # registries: they belong to organizations
    "CreateRegistryMembers", "DeleteRegistry", "DeleteRegistryMembers", "FetchAdvancedRegistryFeatures",
    "FetchOrgInfoFromEntity", "FetchOrganization", "FetchRegistries", "FetchRegistry", "RegistryCollections",
    "RegistryTeamMembers", "RegistryUserMembers", "RegistryVersions", "RenameRegistry",
    "UpdateTeamRegistryRole", "UpdateUserRegistryRole", "UpsertRegistry",
    # launch queues
    "CreateDefaultResourceConfig", "CreateRunQueue", "UpsertRunQueue",
    # users and teams: there is one user
    "CreateInvite", "CreateServiceAccount", "CreateTeam", "CreateUserFromAdmin", "DeleteApiKey",
    "DeleteInvite", "GenerateApiKey", "GetTeamEntity", "SearchUsers",
    # custom charts, and rewinding a finished run
    "CreateCustomChart", "RewindRun",
}  # fmt: skip
DOCUMENTS = installed_documents()


def supported(document: Document) -> bool:
    if document.source.startswith(UNSUPPORTED_FOLDERS):
        return False
    return not UNSUPPORTED & set(document.names)


SUPPORTED = [document for document in DOCUMENTS if supported(document)]


@pytest.mark.parametrize("document", SUPPORTED, ids=lambda document: f"{document.source}:{document.names[0]}")
def test_document_is_valid_for_our_schema(document: Document) -> None:
    # wandb fills in two kinds of placeholders before it sends a document.
    text = document.text.replace("_PROJECT_QUERY_", "project { id name entity { id name } }")
    if "...RunFilesFragment" in text:
        text += files.FILE_FRAGMENT
    assert [error.message for error in validate(schema(), parse(text))] == []


@pytest.mark.parametrize("fragment", [runs.RUN_FRAGMENT, runs.LIGHTWEIGHT_RUN_FRAGMENT])
def test_fragments_that_queries_are_built_from_are_valid(fragment: str) -> None:
    name = fragment.split()[1]
    text = f'query {{ project {{ run(name: "r") {{ projectId ...{name} }} }} }} {fragment}'
    assert [error.message for error in validate(schema(), parse(text))] == []


def test_the_documents_of_a_runs_life_were_found() -> None:
    from_go = {name for document in DOCUMENTS if document.source == "wandb-core" for name in document.names}
    assert {
        "UpsertBucket",
        "CreateRunFiles",
        "RunResumeStatus",
        "Viewer",
        "HistoryPage",
        "StopRun",
    } <= from_go
    from_python = {name for document in SUPPORTED for name in document.names}
    assert {"UpsertSweep", "CreateAgent", "Heartbeat", "GetSweep", "GetSweeps", "GetProjects"} <= from_python
    assert len(SUPPORTED) >= 50


def test_the_list_of_what_is_not_supported_has_no_dead_names() -> None:
    names = {name for document in DOCUMENTS for name in document.names}
    assert names >= UNSUPPORTED
