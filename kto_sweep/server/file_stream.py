"""Messages of a run's process: lines of its streams, its summary, and its exit code."""

import sqlite3
from dataclasses import dataclass
from typing import Any

from kto_sweep.server import overwritten_runs, request_body, run_writes, successive_halving, sweep_progress
from kto_sweep.server.errors import NotFoundError, RequestError
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.states import ENDED, RunState
from kto_sweep.server.store import lines, runs
from kto_sweep.server.store.lines import Stream
from kto_sweep.server.store.runs import Run

_STREAMS = {
    "wandb-history.jsonl": Stream.HISTORY,
    "wandb-events.jsonl": Stream.EVENTS,
    "output.log": Stream.OUTPUT,
}
_SUMMARY = "wandb-summary.json"
MAX_LINE = 2**40
"""Larger line numbers are rejected: no run has them, and their sums must fit SQLite's integers."""


@dataclass(frozen=True)
class Chunk:
    """Lines for one stream; the first is line number `offset`."""

    name: str
    offset: int
    content: list[str]


@dataclass(frozen=True)
class Message:
    """One request of a run's process. An empty one is a heartbeat."""

    chunks: tuple[Chunk, ...]
    preempting: bool
    complete: bool
    exitcode: int


def parse(body: bytes) -> Message:
    """The message in a request body. Raises RequestError."""
    data = request_body.parse_json(body)
    if not isinstance(data, dict):
        raise RequestError("the body is not a JSON object")
    files = data.get("files") or {}
    if not isinstance(files, dict):
        raise RequestError("files is not an object")
    exitcode = data.get("exitcode") or 0
    if not isinstance(exitcode, int):
        raise RequestError("exitcode is not a whole number")
    return Message(
        chunks=tuple(_chunk(name, entry) for name, entry in files.items()),
        preempting=bool(data.get("preempting")),
        complete=bool(data.get("complete")),
        # Read back as GraphQL's Int, which has 32 bits.
        exitcode=max(-(2**31), min(exitcode, 2**31 - 1)),
    )


def _chunk(name: str, entry: Any) -> Chunk:
    offset = entry.get("offset", 0) if isinstance(entry, dict) else None
    content = entry.get("content", []) if isinstance(entry, dict) else None
    if not isinstance(offset, int) or not 0 <= offset < MAX_LINE:
        raise RequestError(f"files.{name}.offset is not a line number")
    if not isinstance(content, list) or not all(isinstance(line, str) for line in content):
        raise RequestError(f"files.{name}.content is not a list of lines")
    return Chunk(name, offset, content)


def receive(
    connection: sqlite3.Connection,
    server: ServerState,
    entity: str,
    project: str,
    name: str,
    message: Message,
) -> dict[str, Any]:
    """Writes the message and returns the response body.

    Idempotent: sending a message twice changes nothing. Raises NotFoundError for an unknown run.
    """
    run = runs.find_by_path(connection, entity, project, name)
    if run is None:
        raise NotFoundError(f"there is no run {entity}/{project}/{name}")
    values: dict[str, Any] = {"heartbeat_at": server.now(), **_summary(message)}
    if not message.complete:
        values["state"] = _state_after_heartbeat(run, message)
    runs.update(connection, run.id, **values)
    run = _write_lines(connection, run, message)
    if run.sweep_id is not None:
        _update_sweep(connection, run, message)
    if message.complete:
        _finish_run(connection, run, message)
    return _response(connection, run)


def _write_lines(connection: sqlite3.Connection, run: Run, message: Message) -> Run:
    """Writes the message's lines; the run with an updated `restart` field."""
    for chunk in message.chunks:
        stream = _STREAMS.get(chunk.name)
        if stream is not None and chunk.content:
            run = overwritten_runs.before_chunk(connection, run, stream, chunk.offset, chunk.content[0])
            lines.write(connection, run.id, stream, chunk.offset, chunk.content)
    return run


def _summary(message: Message) -> dict[str, str]:
    """The run's new summary: each line is a complete summary, so the last one counts."""
    for chunk in message.chunks:
        if chunk.name == _SUMMARY and chunk.content:
            return {"summary": run_writes.json_object(chunk.content[-1], _SUMMARY)}
    return {}


def _state_after_heartbeat(run: Run, message: Message) -> RunState:
    if message.preempting:
        return RunState.PREEMPTING
    if run.state in (RunState.PENDING, RunState.CRASHED):
        # A run marked as crashed sends again.
        return RunState.RUNNING
    return run.state


def _update_sweep(connection: sqlite3.Connection, run: Run, message: Message) -> None:
    for chunk in message.chunks:
        if _STREAMS.get(chunk.name) is Stream.HISTORY:
            sweep_progress.on_history_rows(connection, run, chunk.offset, chunk.content)
    if any(chunk.name == _SUMMARY for chunk in message.chunks):
        changed = runs.get(connection, run.id)
        assert changed is not None
        sweep_progress.on_summary(connection, changed)


def _finish_run(connection: sqlite3.Connection, run: Run, message: Message) -> None:
    if message.exitcode == 0:
        state = RunState.FINISHED
    elif run.stop_requested:
        state = successive_halving.state_when_stopped(run)
    elif message.preempting or run.state is RunState.PREEMPTING:
        state = RunState.PREEMPTED
    else:
        state = RunState.FAILED
    if run.restart:
        overwritten_runs.finish(connection, run)
    paused = run.paused and state is RunState.PREEMPTED
    runs.update(connection, run.id, state=state, exitcode=message.exitcode, paused=paused)
    if run.sweep_id is not None and (state in ENDED or paused):
        sweep_progress.finish_if_done(connection, run.sweep_id)


def _response(connection: sqlite3.Connection, run: Run) -> dict[str, Any]:
    changed = runs.get(connection, run.id)
    assert changed is not None
    return {"exitcode": changed.exitcode, "limits": {}, "stopped": changed.stop_requested}
