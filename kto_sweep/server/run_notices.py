"""Warnings on a run's page about what its process sent and the server did not keep.

The SDK's background process has no way to the terminal: it logs the error in debug-internal.log and goes on.
"""

import sqlite3
from collections.abc import Mapping
from typing import Any

from graphql import DocumentNode, FieldNode, OperationDefinitionNode, OperationType

from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store import files, runs
from kto_sweep.server.store.files import AlertRecord

TITLE = "Not kept"
MAX_NOTICES = 20
"""Notices of a run; a loop that is refused at each step must not fill the page."""
MAX_REASON = 500
"""Characters of a reason."""


def refused(server: ServerState, document: DocumentNode, variables: Mapping[str, Any], reason: str) -> None:
    """Notes on the run that a mutation's variables name, if any, that the mutation was refused."""
    mutations, path = _mutations(document), _run_path(variables)
    if not mutations or path is None:
        return

    def write(connection: sqlite3.Connection) -> None:
        run = runs.find_by_path(connection, *path)
        if run is not None:
            note(connection, run.id, f"{', '.join(mutations)}: {reason[:MAX_REASON]}", server.now())

    server.database.write(write)


def note(connection: sqlite3.Connection, run_id: int, text: str, now: float) -> None:
    """Shows the text on the run's page, once."""
    told = [alert.text for alert in files.alerts(connection, run_id) if alert.title == TITLE]
    if text not in told and len(told) < MAX_NOTICES:
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


def _run_path(variables: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Entity, project and run in the variables, or in their `input`; None if one is missing."""
    fields = variables.get("input", variables)
    if not isinstance(fields, Mapping):
        return None
    entity, project, run = (fields.get(name) for name in ("entityName", "projectName", "runName"))
    if isinstance(entity, str) and isinstance(project, str) and isinstance(run, str):
        return entity, project, run
    return None
