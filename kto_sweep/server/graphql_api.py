"""Executes GraphQL requests against the schema."""

import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
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

from kto_sweep.server import refused, run_notices
from kto_sweep.server.errors import NotFoundError, RefusedError, RequestError
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
NOT_UNDERSTOOD = "this server does not understand the request"
"""Start of the error for an invalid query of no known family; the unknown names follow."""

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
        document = _parse(query)
    except (RequestError, GraphQLError) as problem:
        return _bad_request(problem)
    try:
        _validate(query)
    except RequestError as problem:
        run_notices.refused(context.server, document, variables, str(problem))
        return _bad_request(problem)
    result = execute_sync(
        schema(), document, context_value=context, variable_values=variables, operation_name=name
    )
    assert isinstance(result, ExecutionResult)
    response = _response(result)
    if result.errors:
        run_notices.refused(context.server, document, variables, result.errors[0].message)
    return response


def _bad_request(problem: Exception) -> Response:
    return Response(400, {"errors": [{"message": str(problem)}]})


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
def _parse(query: str) -> DocumentNode:
    """The query's syntax tree. Raises RequestError, GraphQLError."""
    if len(query) > MAX_QUERY:
        raise RequestError(f"the query has more than {MAX_QUERY} characters")
    return parse(query, max_tokens=MAX_TOKENS)


@lru_cache(maxsize=512)
def _validate(query: str) -> None:
    """Raises RequestError for a query that the schema does not have, or that is too large."""
    document = _parse(query)
    if errors := validate(schema(), document):
        family = refused.family_of(document)
        raise RequestError(
            family.sentence
            if family
            else "; ".join([NOT_UNDERSTOOD, *(error.message for error in errors[:5])])
        )
    check_size(document)


def _response(result: ExecutionResult) -> Response:
    if not result.errors:
        return Response(200, {"data": result.data})
    causes = [error.original_error for error in result.errors]
    for cause in causes:
        if isinstance(cause, StoreUnavailable):
            raise cause
        if isinstance(cause, sqlite3.DatabaseError | MemoryError):
            raise StoreUnavailable(f"the database cannot be read: {str(cause) or 'out of memory'}")
    return Response(
        _status(causes), {"data": result.data, "errors": [_shown(error) for error in result.errors]}
    )


def _status(causes: Sequence[BaseException | None]) -> int:
    for kind, status in ((NotFoundError, 404), (RefusedError, 400)):
        if any(isinstance(cause, kind) for cause in causes):
            return status
    return 200


def _shown(error: GraphQLError) -> dict[str, Any]:
    """The error for the client; internal errors are also logged."""
    cause = error.original_error
    if cause is not None and not isinstance(cause, RequestError | FilterError | GraphQLError | UnicodeError):
        _log.error("a resolver failed", exc_info=cause)
    return dict(error.formatted)
