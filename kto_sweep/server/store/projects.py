"""Projects: created when a client first writes to them."""

import sqlite3
from dataclasses import dataclass

DEFAULT_ENTITY = "local"
DEFAULT_PROJECT = "uncategorized"


@dataclass(frozen=True)
class Project:
    """One project of one entity."""

    id: int
    entity: str
    name: str
    description: str | None
    created_at: float


def find(connection: sqlite3.Connection, entity: str | None, name: str | None) -> Project | None:
    """The project of that name; missing names default to local/uncategorized."""
    row = connection.execute(
        "SELECT * FROM project WHERE entity = ? AND name = ?",
        (entity or DEFAULT_ENTITY, name or DEFAULT_PROJECT),
    ).fetchone()
    return Project(*row) if row else None


def get(connection: sqlite3.Connection, project_id: int) -> Project:
    """The project of row `project_id`, which must exist."""
    return Project(*connection.execute("SELECT * FROM project WHERE id = ?", (project_id,)).fetchone())


def ensure(connection: sqlite3.Connection, entity: str | None, name: str | None, now: float) -> Project:
    """The project of that name, created if missing."""
    connection.execute(
        "INSERT INTO project (entity, name, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (entity or DEFAULT_ENTITY, name or DEFAULT_PROJECT, now),
    )
    project = find(connection, entity, name)
    assert project is not None
    return project


def page(connection: sqlite3.Connection, entity: str | None, first: int, offset: int) -> list[Project]:
    """Projects of one entity (of all when None), newest first."""
    rows = connection.execute(
        "SELECT * FROM project WHERE ?1 IS NULL OR entity = ?1 ORDER BY id DESC LIMIT ?2 OFFSET ?3",
        (entity, first, offset),
    )
    return [Project(*row) for row in rows]
