"""Registers the resolver function of each field of the GraphQL schema.

A field without a resolver reads the record's attribute of the same name in snake case.
"""

import re
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from graphql import GraphQLObjectType, GraphQLResolveInfo, GraphQLSchema

from kto_sweep.server.errors import RequestError
from kto_sweep.server.server_state import ServerState

Resolver = Callable[..., Any]

MAX_PAGE = 1000
"""Maximum entries of a page; larger requests are cut to this."""


@dataclass(frozen=True)
class Context:
    """What every resolver receives: the shared state and the client's base URL."""

    server: ServerState
    base_url: str
    """URL by which the client reached the server, without a trailing slash."""
    shared: bool = False
    """The client is one of several processes that write a run at once (wandb's mode="shared")."""

    @property
    def reader(self) -> sqlite3.Connection:
        """This thread's read-only connection."""
        return self.server.database.reader()


class Fields:
    """Resolvers by GraphQL type and field name."""

    def __init__(self) -> None:
        self.table: dict[tuple[str, str], Resolver] = {}

    def of(self, type_name: str, *field_names: str) -> Callable[[Resolver], Resolver]:
        """Decorator: `(source, context, **arguments)` resolves these fields of the type."""

        def register(function: Resolver) -> Resolver:
            for name in field_names:
                self.table[type_name, name] = function
            return function

        return register


def attach(schema: GraphQLSchema, *groups: Fields) -> None:
    """Sets the resolver of every field in the schema. Raises KeyError for a resolver without a field."""
    functions = {key: function for group in groups for key, function in group.table.items()}
    for type_name, kind in schema.type_map.items():
        if isinstance(kind, GraphQLObjectType) and not type_name.startswith("__"):
            for field_name, field in kind.fields.items():
                function = functions.pop((type_name, field_name), None)
                field.resolve = _call(function) if function else _attribute(snake(field_name))
    if functions:
        raise KeyError(f"these resolvers have no field in the schema: {sorted(functions)}")


def _call(function: Resolver) -> Resolver:
    def resolve(source: Any, info: GraphQLResolveInfo[Context], **arguments: Any) -> Any:
        return function(source, info.context, **{snake(name): value for name, value in arguments.items()})

    return resolve


def _attribute(name: str) -> Resolver:
    def resolve(source: Any, info: GraphQLResolveInfo[Context], **arguments: Any) -> Any:
        return source.get(name) if isinstance(source, Mapping) else getattr(source, name)

    return resolve


def snake(name: str) -> str:
    """`historyLineCount` as `history_line_count`."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def snake_keys(value: Mapping[str, Any]) -> dict[str, Any]:
    """An input object with snake-case keys."""
    return {snake(name): item for name, item in value.items()}


@dataclass(frozen=True)
class PageArgs:
    """The part of a list that a client requests."""

    offset: int
    first: int


def page_args(first: int | None, after: str | None, default: int = 50, maximum: int = MAX_PAGE) -> PageArgs:
    """Parses `first` and the cursor `after`. Raises RequestError for an invalid cursor."""
    if after and (not after.isdecimal() or len(after) > 15):
        raise RequestError(f"{after!r} is not a cursor")
    count = default if first is None else first
    return PageArgs(int(after) if after else 0, max(0, min(count, maximum)))


def connection(entries: list[Any], page: PageArgs) -> dict[str, Any]:
    """A page as a GraphQL connection; `entries` holds one entry more than the page if there is a next page.

    A cursor is the offset of the next entry.
    """
    shown = entries[: page.first]
    end = page.offset + len(shown)
    return {
        "edges": [{"node": node, "cursor": str(page.offset + i)} for i, node in enumerate(shown, 1)],
        "page_info": {"end_cursor": str(end) if shown else None, "has_next_page": len(entries) > len(shown)},
    }
