"""Which function gives which field of the schema its value.

A field without a function takes the attribute of the same name (in snake case) of the record it belongs to.
"""

import re
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from graphql import GraphQLObjectType, GraphQLResolveInfo, GraphQLSchema

from kto_sweep.server.backend import Backend
from kto_sweep.server.errors import RequestError

Resolver = Callable[..., Any]

LARGEST_PAGE = 1000
"""Entries of one page at most, whatever a client asks for."""


@dataclass(frozen=True)
class Request:
    """What a resolver may use."""

    backend: Backend
    base_url: str
    """The address by which the client reached the server, without a slash at the end."""

    @property
    def reader(self) -> sqlite3.Connection:
        """This thread's connection for reading."""
        return self.backend.database.reader()


class Fields:
    """Resolvers by type and field name."""

    def __init__(self) -> None:
        self.table: dict[tuple[str, str], Resolver] = {}

    def of(self, type_name: str, *field_names: str) -> Callable[[Resolver], Resolver]:
        """Decorator: the function `(source, request, **arguments)` gives these fields of the type."""

        def keep(function: Resolver) -> Resolver:
            for name in field_names:
                self.table[type_name, name] = function
            return function

        return keep


def attach(schema: GraphQLSchema, *groups: Fields) -> None:
    """Make every field of the schema use its resolver. Raises KeyError for a resolver without a field."""
    functions = {key: function for group in groups for key, function in group.table.items()}
    for type_name, kind in schema.type_map.items():
        if isinstance(kind, GraphQLObjectType) and not type_name.startswith("__"):
            for field_name, field in kind.fields.items():
                function = functions.pop((type_name, field_name), None)
                field.resolve = _call(function) if function else _attribute(snake(field_name))
    if functions:
        raise KeyError(f"resolvers without a field in the schema: {sorted(functions)}")


def _call(function: Resolver) -> Resolver:
    def resolve(source: Any, info: GraphQLResolveInfo[Request], **arguments: Any) -> Any:
        return function(source, info.context, **{snake(name): value for name, value in arguments.items()})

    return resolve


def _attribute(name: str) -> Resolver:
    def resolve(source: Any, info: GraphQLResolveInfo[Request]) -> Any:
        return source.get(name) if isinstance(source, Mapping) else getattr(source, name)

    return resolve


def snake(name: str) -> str:
    """`historyLineCount` as `history_line_count`."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def snake_keys(value: Mapping[str, Any]) -> dict[str, Any]:
    """An input object with its keys in snake case."""
    return {snake(name): item for name, item in value.items()}


@dataclass(frozen=True)
class Window:
    """Which part of a list a client wants."""

    offset: int
    first: int


def window(first: int | None, after: str | None, usual: int = 50) -> Window:
    """The window that `first` and the cursor `after` mean. Raises RequestError for a strange cursor."""
    if after and (not after.isdecimal() or len(after) > 15):
        raise RequestError(f"{after!r} is not a cursor")
    count = usual if first is None else first
    return Window(int(after) if after else 0, max(0, min(count, LARGEST_PAGE)))


def connection(entries: list[Any], part: Window) -> dict[str, Any]:
    """A page as GraphQL shows it; `entries` holds one more than the page when there is a next page.

    A cursor is the offset of the entry after it.
    """
    shown = entries[: part.first]
    end = part.offset + len(shown)
    return {
        "edges": [{"node": node, "cursor": str(part.offset + i)} for i, node in enumerate(shown, 1)],
        "page_info": {"end_cursor": str(end) if shown else None, "has_next_page": len(entries) > len(shown)},
    }
