"""Mutations: each is one write transaction."""

import json
import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

from kto_sweep.server import branching, heartbeat, run_writes, sweep_writes, uploads
from kto_sweep.server.errors import RequestError
from kto_sweep.server.resolvers import file as file_nodes
from kto_sweep.server.resolvers.registry import Context, Fields, snake_keys
from kto_sweep.server.store import files, projects
from kto_sweep.server.store.database import StoreUnavailable
from kto_sweep.server.store.ids import from_global, to_global

fields = Fields()

Input = dict[str, Any]
Payload = dict[str, Any]

DONE: Payload = {"success": True, "client_mutation_id": None}

T = TypeVar("T")


def _write_now(context: Context, work: Callable[[sqlite3.Connection], T]) -> T:
    """Like `write`, for a user who waits: a full disk is an error at once, without the client's retries."""
    try:
        return context.server.database.write(work)
    except StoreUnavailable as problem:
        raise RequestError(f"{problem}; nothing was changed") from problem


@fields.of("Mutation", "upsertBucket")
def _upsert_bucket(source: object, context: Context, input: Input) -> Payload:
    server = context.server
    run, inserted = server.database.write(
        lambda c: run_writes.upsert(c, server, snake_keys(input), shared=context.shared)
    )
    return {"bucket": run, "inserted": inserted, "update_info": None}


@fields.of("Mutation", "rewindRun")
def _rewind_run(source: object, context: Context, input: Input) -> Payload:
    run = context.server.database.write(lambda c: branching.rewind(c, snake_keys(input)))
    return {"rewound_run": run}


@fields.of("Mutation", "upsertModel")
def _upsert_model(source: object, context: Context, input: Input) -> Payload:
    now = context.server.now()
    existing = projects.find(context.reader, input.get("entityName"), input.get("name"))
    project = context.server.database.write(
        lambda c: projects.ensure(c, input.get("entityName"), input.get("name"), now)
    )
    return {"project": project, "model": project, "inserted": existing is None}


@fields.of("Mutation", "upsertSweep")
def _upsert_sweep(source: object, context: Context, input: Input) -> Payload:
    server = context.server
    sweep, warnings = _write_now(context, lambda c: sweep_writes.upsert(c, server, snake_keys(input)))
    return {"sweep": sweep, "config_validation_warnings": list(warnings)}


@fields.of("Mutation", "createAgent")
def _create_agent(source: object, context: Context, input: Input) -> Payload:
    server = context.server
    return {"agent": server.database.write(lambda c: heartbeat.register_agent(c, server, snake_keys(input)))}


@fields.of("Mutation", "agentHeartbeat")
def _agent_heartbeat(source: object, context: Context, input: Input) -> Payload:
    agent, commands = heartbeat.handle(context.server, input["id"], input.get("runState"))
    return {"agent": agent, "commands": json.dumps(commands)}


@fields.of("Mutation", "createRunFiles")
def _create_run_files(source: object, context: Context, input: Input) -> Payload:
    server = context.server
    run, announced = server.database.write(lambda c: uploads.announce(c, server, snake_keys(input)))
    nodes = [file_nodes.of_run(context, file) for file in announced]
    return {"run_id": to_global("Run", run.id), "upload_headers": [], "files": nodes}


@fields.of("Mutation", "markRunFilesUploaded")
def _mark_run_files_uploaded(source: object, context: Context, input: Input) -> Payload:
    # The server itself records when an upload completes.
    return DONE


@fields.of("Mutation", "deleteFiles")
def _delete_files(source: object, context: Context, input: Input) -> Payload:
    rows = [row for opaque in input["files"] if (row := from_global("File", opaque)) is not None]
    found = [file for row in rows if (file := files.get(context.reader, row)) is not None]
    context.server.database.write(lambda c: files.delete(c, [file.id for file in found]))
    for file in found:
        uploads.path_of(context.server, file).unlink(missing_ok=True)
    return DONE


@fields.of("Mutation", "stopRun")
def _stop_run(source: object, context: Context, input: Input) -> Payload:
    _write_now(context, lambda c: run_writes.request_stop(c, input["id"]))
    return DONE


@fields.of("Mutation", "deleteRun")
def _delete_run(source: object, context: Context, input: Input) -> Payload:
    delete_artifacts = bool(input.get("deleteArtifacts"))
    _write_now(context, lambda c: run_writes.delete(c, context.server, input["id"], delete_artifacts))
    return DONE


@fields.of("Mutation", "updateRunState")
def _update_run_state(source: object, context: Context, input: Input) -> Payload:
    _write_now(context, lambda c: run_writes.set_state(c, input["id"], input["state"]))
    return DONE


@fields.of("Mutation", "enqueueSweepRun")
def _enqueue_sweep_run(source: object, context: Context, input: Input) -> Payload:
    server = context.server
    run = server.database.write(lambda c: sweep_writes.enqueue(c, server, snake_keys(input)))
    return {"id": run.name, "run_queue_item_id": to_global("RunQueueItem", run.id)}


@fields.of("Mutation", "notifyScriptableRunAlert")
def _notify_alert(source: object, context: Context, input: Input) -> Payload:
    server = context.server
    server.database.write(lambda c: run_writes.add_alert(c, server, snake_keys(input)))
    return DONE
