"""Reads the trials of a sweep from the database, all or those that changed, and sends them to kto-sweep."""

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from kto_sweep.server import dashboard_data
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_rules import SweepRules, read_rules
from kto_sweep.sweep.trial_rows import TrialRow, summary_keys, write_row

BATCH = 1000
"""Rows of a query. A long one would keep SQLite from shortening its log while a slow client reads."""

_HEAD = (
    "name, display_name, state, created_at, heartbeat_at, paused, sweep_id IS NOT :sweep,"
    " objective_value, objective IS :metric"
)
_MACHINE = "'$._wandb', '$.record'"
"""What wandb and kto-sweep record of the machine: three quarters of a configuration."""
_CONFIG = f"CASE WHEN strict_config IS NULL THEN json_remove(config, {_MACHINE}) ELSE config END"
"""SQLite cannot read NaN: such a configuration is sent as it is."""
_PRIOR = "id IN (SELECT run_id FROM prior_run WHERE sweep_id = :sweep) AND sweep_id IS NOT :sweep"
_OWN = "sweep_id = :sweep"


def rows(
    reader: Callable[[], sqlite3.Connection],
    sweep: Sweep,
    rules: SweepRules,
    keys: Sequence[str] | None,
    change: int = -1,
) -> Iterator[tuple[Any, ...]]:
    """The first fields, the configuration and the summary of each run: prior runs first, then by age.

    `reader`: this thread's connection. `keys`: those of the summaries to read; None: whole ones. `change`:
    only runs with a higher number of their last change.
    """
    parameters: dict[str, Any] = {
        "sweep": sweep.id,
        "metric": rules.metric.name if rules.metric else None,
        "change": change,
    }
    summary = "summary"
    if keys is not None:
        names = {f"key{number}": f'$."{key}"' for number, key in enumerate(keys)}
        parameters |= names
        extract = f"json_extract(summary, {', '.join(f':{name}' for name in names)})"
        summary = f"CASE WHEN strict_summary IS NULL THEN {extract} ELSE summary END"
    for which in (_PRIOR, _OWN):
        query = (
            f"SELECT id, {_HEAD}, {_CONFIG}, {summary} FROM run"
            f" WHERE {which} AND id > :last AND change > :change ORDER BY id LIMIT {BATCH}"
        )
        last = 0
        while batch := reader().execute(query, {**parameters, "last": last}).fetchall():
            yield from (tuple(row)[1:] for row in batch)
            last = batch[-1][0]


def as_row(fields: Sequence[Any]) -> TrialRow:
    """The row of what `rows` yields."""
    return TrialRow._make([*fields[:-2], *map(json.loads, fields[-2:])])


def route(server: ServerState, key: Sequence[Middleware]) -> Route:
    """The route by which commands read a sweep; `key` is the middleware that requires the API key.

    Answers with lines of JSON: the sweep, each of its trials, and how many these were. The trials have the
    values of the summary's `key`s besides those on which states and rankings depend; with `whole`, all.
    """

    async def respond(request: Request) -> Response:
        query = request.query_params
        connection = await run_in_threadpool(server.database.reader)
        _, sweep = await run_in_threadpool(dashboard_data.find_sweep, connection, request.path_params)
        keys = None if "whole" in query else query.getlist("key")
        return StreamingResponse(_lines(server, sweep, keys), media_type="application/x-ndjson")

    path = "/-/trials/{entity}/{project}/{sweep}"
    return Route(path, respond, methods=["GET"], middleware=list(key))


def _lines(server: ServerState, sweep: Sweep, keys: Sequence[str] | None) -> Iterator[str]:
    rules = read_rules(sweep.config)
    requested = None if keys is None else summary_keys((*rules.metrics, *keys))
    head = {
        "config": sweep.config,
        "state": sweep.state.value,
        "updated": sweep.updated_at,
        "now": server.now(),
        "keys": requested,
        "metric": rules.metric.name if rules.metric else None,
    }
    yield f"{json.dumps(head)}\n"
    count, all_rows = 0, rows(server.database.reader, sweep, rules, requested)
    while chunk := [write_row(row[:-2], *row[-2:]) for row in islice(all_rows, BATCH)]:
        count += len(chunk)
        yield "\n".join([*chunk, ""])
    yield f"{count}\n"
