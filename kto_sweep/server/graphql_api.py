"""Executes GraphQL requests against the schema."""

import logging
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Any

from graphql import (
    DocumentNode,
    ExecutionResult,
    GraphQLError,
    GraphQLScalarType,
    GraphQLSchema,
    build_schema,
    execute_sync,
    parse,
    validate,
)

from kto_sweep.server.errors import NotFoundError, RequestError
from kto_sweep.server.query_size import check_size
from kto_sweep.server.resolvers import (
    artifact,
    artifact_collection,
    artifact_writes,
    project,
    run,
    sweep,
    viewer,
    writes,
)
from kto_sweep.server.resolvers.registry import Context, attach
from kto_sweep.server.store.database import StoreUnavailable
from kto_sweep.server.store.filters import FilterError

MAX_QUERY = 100_000
"""Maximum characters of a query."""
MAX_TOKENS = 5_000
SCHEMAS = ("schema.graphql", "artifacts.graphql")
SUPPORTED = (
    "this server supports projects, sweeps, runs, files and artifacts, but not registries, reports or queues"
)
"""First sentence of the error for an unsupported query; the unknown names follow."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Response:
    """Status code and JSON body of a response."""

    status: int
    body: dict[str, Any]


@cache
def schema() -> GraphQLSchema:
    """The schema with its resolvers."""
    folder = resources.files("kto_sweep.server")
    built = build_schema("\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in SCHEMAS))
    attach(
        built,
        viewer.fields,
        project.fields,
        run.fields,
        sweep.fields,
        writes.fields,
        artifact.fields,
        artifact_collection.fields,
        artifact_writes.fields,
    )
    artifact.set_types(built)
    _read_scalar(built, "JSONString", _json_text)
    _read_scalar(built, "Int64", _whole_number)
    return built


def _read_scalar(built: GraphQLSchema, name: str, read: Callable[[Any], Any]) -> None:
    """Parses values of this scalar in client input with `read`."""
    scalar = built.type_map[name]
    assert isinstance(scalar, GraphQLScalarType)
    scalar.coerce_input_value = read


def _json_text(value: Any) -> str:
    if not isinstance(value, str):
        raise GraphQLError("this value must be JSON as a string")
    return value


def _whole_number(value: Any) -> int:
    """A 64-bit integer from a number or a string."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as problem:
        raise GraphQLError(f"{str(value)[:80]!r} is not a whole number") from problem


def execute(context: Context, payload: object) -> Response:
    """Response to a GraphQL request. Raises StoreUnavailable, after which the client should retry."""
    try:
        query, variables, name = _parts(payload)
        document = _parse_and_validate(query)
    except (RequestError, GraphQLError) as problem:
        return Response(400, {"errors": [{"message": str(problem)}]})
    result = execute_sync(
        schema(), document, context_value=context, variable_values=variables, operation_name=name
    )
    assert isinstance(result, ExecutionResult)
    return _response(result)


def _parts(payload: object) -> tuple[str, dict[str, Any], str | None]:
    """Query, variables and operation name; wandb's Python client sends an empty operation name."""
    if not isinstance(payload, Mapping) or not isinstance(payload.get("query"), str):
        raise RequestError("the body is not a JSON object with a query")
    variables = payload.get("variables")
    if variables is not None and not isinstance(variables, dict):
        raise RequestError("variables is not an object")
    name = payload.get("operationName")
    return payload["query"], variables or {}, name if isinstance(name, str) and name else None


@lru_cache(maxsize=512)
def _parse_and_validate(query: str) -> DocumentNode:
    """The parsed query, valid for the schema. Raises RequestError, GraphQLError."""
    if len(query) > MAX_QUERY:
        raise RequestError(f"the query has more than {MAX_QUERY} characters")
    document = parse(query, max_tokens=MAX_TOKENS)
    if errors := validate(schema(), document):
        raise RequestError("; ".join([SUPPORTED, *(error.message for error in errors[:5])]))
    check_size(document)
    return document


def _response(result: ExecutionResult) -> Response:
    if not result.errors:
        return Response(200, {"data": result.data})
    causes = [error.original_error for error in result.errors]
    for cause in causes:
        if isinstance(cause, StoreUnavailable):
            raise cause
        if isinstance(cause, sqlite3.DatabaseError):
            raise StoreUnavailable(f"the database cannot be read: {cause}")
    status = 404 if any(isinstance(cause, NotFoundError) for cause in causes) else 200
    return Response(status, {"data": result.data, "errors": [_shown(error) for error in result.errors]})


def _shown(error: GraphQLError) -> dict[str, Any]:
    """The error for the client; internal errors are also logged."""
    cause = error.original_error
    if cause is not None and not isinstance(cause, RequestError | FilterError | GraphQLError | UnicodeError):
        _log.error("a resolver failed", exc_info=cause)
    return dict(error.formatted)
