"""Mutations: each is one write transaction."""

import json
import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

from kto_sweep.server import heartbeat, run_writes, sweep_writes, uploads
from kto_sweep.server.errors import RequestError
from kto_sweep.server.resolvers.registry import Fields, Request, snake_keys
from kto_sweep.server.store import files, projects
from kto_sweep.server.store.database import StoreUnavailable
from kto_sweep.server.store.ids import from_global, to_global

fields = Fields()

Input = dict[str, Any]
Payload = dict[str, Any]

DONE: Payload = {"success": True, "client_mutation_id": None}

T = TypeVar("T")


def _write_now(request: Request, work: Callable[[sqlite3.Connection], T]) -> T:
    """Write what a person waits for: a full disk is told at once, where a run's process tries again."""
    try:
        return request.backend.database.write(work)
    except StoreUnavailable as problem:
        raise RequestError(f"{problem}; nothing was changed") from problem


@fields.of("Mutation", "upsertBucket")
def _upsert_bucket(source: object, request: Request, input: Input) -> Payload:
    backend = request.backend
    run, inserted = backend.database.write(lambda c: run_writes.upsert(c, backend, snake_keys(input)))
    return {"bucket": run, "inserted": inserted, "update_info": None}


@fields.of("Mutation", "upsertModel")
def _upsert_model(source: object, request: Request, input: Input) -> Payload:
    now = request.backend.now()
    known = projects.find(request.reader, input.get("entityName"), input.get("name"))
    project = request.backend.database.write(
        lambda c: projects.ensure(c, input.get("entityName"), input.get("name"), now)
    )
    return {"project": project, "model": project, "inserted": known is None}


@fields.of("Mutation", "upsertSweep")
def _upsert_sweep(source: object, request: Request, input: Input) -> Payload:
    backend = request.backend
    sweep, warnings = _write_now(request, lambda c: sweep_writes.upsert(c, backend, snake_keys(input)))
    return {"sweep": sweep, "config_validation_warnings": list(warnings)}


@fields.of("Mutation", "createAgent")
def _create_agent(source: object, request: Request, input: Input) -> Payload:
    backend = request.backend
    return {"agent": backend.database.write(lambda c: heartbeat.register(c, backend, snake_keys(input)))}


@fields.of("Mutation", "agentHeartbeat")
def _agent_heartbeat(source: object, request: Request, input: Input) -> Payload:
    agent, commands = heartbeat.beat(request.backend, input["id"], input.get("runState"))
    return {"agent": agent, "commands": json.dumps(commands)}


@fields.of("Mutation", "createRunFiles")
def _create_run_files(source: object, request: Request, input: Input) -> Payload:
    backend = request.backend
    run, announced = backend.database.write(lambda c: uploads.announce(c, backend, snake_keys(input)))
    return {"run_id": to_global("Run", run.id), "upload_headers": [], "files": announced}


@fields.of("Mutation", "markRunFilesUploaded")
def _mark_run_files_uploaded(source: object, request: Request, input: Input) -> Payload:
    # The server sees for itself when the bytes have come.
    return DONE


@fields.of("Mutation", "deleteFiles")
def _delete_files(source: object, request: Request, input: Input) -> Payload:
    rows = [row for opaque in input["files"] if (row := from_global("File", opaque)) is not None]
    found = [file for row in rows if (file := files.get(request.reader, row)) is not None]
    request.backend.database.write(lambda c: files.delete(c, [file.id for file in found]))
    for file in found:
        uploads.path_of(request.backend, file).unlink(missing_ok=True)
    return DONE


@fields.of("Mutation", "stopRun")
def _stop_run(source: object, request: Request, input: Input) -> Payload:
    _write_now(request, lambda c: run_writes.request_stop(c, input["id"]))
    return DONE


@fields.of("Mutation", "deleteRun")
def _delete_run(source: object, request: Request, input: Input) -> Payload:
    _write_now(request, lambda c: run_writes.delete(c, request.backend, input["id"]))
    return DONE


@fields.of("Mutation", "updateRunState")
def _update_run_state(source: object, request: Request, input: Input) -> Payload:
    _write_now(request, lambda c: run_writes.set_state(c, input["id"], input["state"]))
    return DONE


@fields.of("Mutation", "enqueueSweepRun")
def _enqueue_sweep_run(source: object, request: Request, input: Input) -> Payload:
    backend = request.backend
    run = backend.database.write(lambda c: sweep_writes.enqueue(c, backend, snake_keys(input)))
    return {"id": run.name, "run_queue_item_id": to_global("RunQueueItem", run.id)}


@fields.of("Mutation", "notifyScriptableRunAlert")
def _notify_alert(source: object, request: Request, input: Input) -> Payload:
    backend = request.backend
    backend.database.write(lambda c: run_writes.add_alert(c, backend, snake_keys(input)))
    return DONE
