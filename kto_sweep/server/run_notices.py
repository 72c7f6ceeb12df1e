"""Warnings on a run's page about what its process sent and the server did not keep.

The SDK's background process has no way to the terminal: it logs the error in debug-internal.log and
continues.
"""

import sqlite3
from collections.abc import Mapping
from typing import Any

from graphql import DocumentNode, FieldNode, OperationDefinitionNode, OperationType

from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store import artifact_collections, artifacts, files, runs
from kto_sweep.server.store.files import AlertRecord
from kto_sweep.server.store.ids import from_global
from kto_sweep.server.store.runs import Run

TITLE = "Not kept"
SAVING = frozenset({"createArtifactManifest", "commitArtifact"})
"""Mutations of the process that saves an artifact."""
MAX_NOTICES = 20
"""Notices of a run; a loop that is refused at each step must not fill the page."""
MAX_REASON = 500
"""Characters of a reason."""


def refused(server: ServerState, document: DocumentNode, variables: Mapping[str, Any], reason: str) -> None:
    """Notes a refused mutation on the run that its variables name, or whose artifact was being saved."""
    mutations = _mutations(document)
    fields = variables.get("input", variables)
    if not mutations or not isinstance(fields, Mapping):
        return

    def write(connection: sqlite3.Connection) -> None:
        run = _run(connection, fields, is_save=not SAVING.isdisjoint(mutations))
        if run is not None:
            subject = " ".join([*mutations, *_texts(fields, "artifactCollectionName")])
            note(connection, run.id, subject, reason, server.now())

    server.database.write(write)


def upload_refused(server: ServerState, artifact_id: int, reason: str) -> None:
    """Notes on the run that logs the artifact that a file of it was not kept."""

    def write(connection: sqlite3.Connection) -> None:
        artifact = artifacts.get(connection, artifact_id)
        if artifact is not None and artifact.run_id is not None:
            collection = artifact_collections.get(connection, artifact.collection_id)
            subject = f"artifact {collection.name}" if collection else "artifact"
            note(connection, artifact.run_id, subject, reason, server.now())

    server.database.write(write)


def note(connection: sqlite3.Connection, run_id: int, subject: str, reason: str, now: float) -> None:
    """Shows on the run's page, once for each subject, why it was not kept."""
    told = [alert.text for alert in files.alerts(connection, run_id) if alert.title == TITLE]
    if len(told) < MAX_NOTICES and not any(text.startswith(f"{subject}: ") for text in told):
        text = f"{subject}: {reason[:MAX_REASON]}"
        files.add_alert(connection, run_id, AlertRecord("WARN", TITLE, text, now))


def _mutations(document: DocumentNode) -> list[str]:
    """The top-level fields of the document's mutations."""
    return [
        selection.name.value
        for definition in document.definitions
        if isinstance(definition, OperationDefinitionNode) and definition.operation is OperationType.MUTATION
        for selection in definition.selection_set.selections
        if isinstance(selection, FieldNode)
    ]


def _run(connection: sqlite3.Connection, fields: Mapping[str, Any], *, is_save: bool) -> Run | None:
    """The run of entityName, projectName and runName, or the one that saves the artifact of artifactID."""
    if len(path := _texts(fields, "entityName", "projectName", "runName")) == 3:
        return runs.find_by_path(connection, *path)
    for global_id in _texts(fields, "artifactID") if is_save else ():
        row = from_global("Artifact", global_id)
        artifact = artifacts.get(connection, row) if row is not None else None
        if artifact is not None and artifact.run_id is not None:
            return runs.get(connection, artifact.run_id)
    return None


def _texts(fields: Mapping[str, Any], *names: str) -> list[str]:
    """The values of these fields that are texts."""
    return [value for name in names if isinstance(value := fields.get(name), str)]
