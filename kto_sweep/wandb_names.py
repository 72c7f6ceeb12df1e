"""The names of projects and entities that W&B accepts."""

import re

from kto_sweep.errors import Problem, UsageError
from kto_sweep.text import show

PROJECT = re.compile(r"[^/\\#?%:\x00-\x1f\x7f]{1,128}")
ENTITY = re.compile(r"[A-Za-z0-9_.\- ]{1,128}")

_RULES = {
    "project": (PROJECT, "W&B allows 1 to 128 characters, and none of / \\ # ? % :"),
    "entity": (ENTITY, "W&B allows 1 to 128 letters, digits, _, ., - and spaces."),
}


def name_problem(kind: str, name: str) -> Problem | None:
    """What is wrong with the name of a `project` or an `entity`; None if W&B accepts it."""
    pattern, rule = _RULES[kind]
    if pattern.fullmatch(name):
        return None
    entity, slash, project = name.partition("/")
    if kind == "project" and slash and ENTITY.fullmatch(entity) and PROJECT.fullmatch(project):
        hint = f"project {project}, entity {entity}"
    else:
        hint = re.sub(r"[^\w.\-]+", "-", name, flags=re.ASCII)[:128].strip("-")
    return Problem((kind,), f"{show(name)} is not the name of {_NOUNS[kind]}", rule, hint)


_NOUNS = {"project": "a project", "entity": "a user or team"}


def require_name(kind: str, name: str | None, source: str) -> None:
    """Raise UsageError if W&B rejects the name that `source`, an option or a variable, has set."""
    problem = name_problem(kind, name) if name is not None else None
    if problem is not None:
        raise UsageError(f"{source}: {problem.what}. {problem.why}", hint=problem.hint)
