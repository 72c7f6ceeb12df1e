"""Messages of a run's process: lines of its streams, its summary, and its exit code."""

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from kto_sweep.server import (
    branching,
    history_blocks,
    request_body,
    run_writes,
    successive_halving,
    sweep_progress,
)
from kto_sweep.server.errors import NotFoundError, RequestError
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.states import ENDED, RunState
from kto_sweep.server.store import lines, runs
from kto_sweep.server.store.lines import Stream, StreamChunk
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
    writer: str | None = None,
) -> dict[str, Any]:
    """Writes the message and returns the response body.

    `writer`: the process, if several write the run at once (wandb's mode="shared"); its offsets count its own
    lines. Idempotent: sending a message twice changes nothing. Raises NotFoundError for an unknown run.
    """
    run = runs.find_by_path(connection, entity, project, name)
    if run is None:
        raise NotFoundError(f"there is no run {entity}/{project}/{name}")
    values: dict[str, Any] = {"heartbeat_at": server.now()}
    if not message.complete:
        values["state"] = _state_after_heartbeat(run, message)
    history = [
        _write_lines(connection, run, chunk, stream, writer)
        for chunk in message.chunks
        if (stream := _STREAMS.get(chunk.name)) is not None and chunk.content
    ]
    if summary := _summary(message):
        values["summary"] = _merged_summary(connection, run, summary, writer)
    runs.update(connection, run.id, **values)
    if any(chunk is not None for chunk in history):
        history_blocks.update(connection, run)
    if run.sweep_id is not None:
        _update_sweep(connection, run, [chunk for chunk in history if chunk is not None], summary)
    if message.complete:
        _finish_run(connection, run, message)
    return _response(connection, run)


def _write_lines(
    connection: sqlite3.Connection, run: Run, chunk: Chunk, stream: Stream, writer: str | None
) -> StreamChunk | None:
    """Writes the lines of one stream; returns the new rows of the history."""
    if writer is None:
        written = StreamChunk(chunk.offset, chunk.content)
        # First, because a client may send its rows at the numbers of those that they replace.
        changed = stream is Stream.HISTORY and _replace_steps(connection, run, chunk.content)
        changed |= lines.write(connection, run.id, stream, chunk.offset, chunk.content)
    else:
        written = lines.append(connection, run.id, stream, writer, chunk.offset, chunk.content)
        changed = False
    if changed:
        runs.count_rewrite(connection, run.id, stream)
    return written if stream is Stream.HISTORY else None


def _replace_steps(connection: sqlite3.Connection, run: Run, texts: list[str]) -> bool:
    """Deletes rows of earlier processes that these replace; whether rows of such processes may be left."""
    if run.overwrite_below:
        below = lines.replace_steps(connection, run.id, run.overwrite_below, texts)
        runs.update(connection, run.id, overwrite_below=below)
    return run.overwrite_below > 0


def _summary(message: Message) -> str | None:
    """The process's new summary: each line is a complete one, so the last one counts."""
    for chunk in message.chunks:
        if chunk.name == _SUMMARY and chunk.content:
            return run_writes.json_object(chunk.content[-1], _SUMMARY)
    return None


def _merged_summary(connection: sqlite3.Connection, run: Run, summary: str, writer: str | None) -> str:
    """The process's summary, and what the run has from other writers or from before it branched."""
    if writer is None and branching.branch_point(run.config) is None:
        return summary
    merged = {**json.loads(run.summary), **json.loads(summary)}
    if writer is not None:  # a writer does not know the run's step
        merged["_step"] = lines.last_step(connection, run.id)
    return json.dumps(merged)


def _state_after_heartbeat(run: Run, message: Message) -> RunState:
    if message.preempting:
        return RunState.PREEMPTING
    if run.state in (RunState.PENDING, RunState.CRASHED):
        # A run marked as crashed sends again.
        return RunState.RUNNING
    return run.state


def _update_sweep(
    connection: sqlite3.Connection, run: Run, history: list[StreamChunk], summary: str | None
) -> None:
    for chunk in history:
        sweep_progress.on_history_rows(connection, run, chunk.offset, chunk.texts)
    if summary is not None:
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
    paused = run.paused and state is RunState.PREEMPTED
    runs.update(connection, run.id, state=state, exitcode=message.exitcode, paused=paused)
    if run.sweep_id is not None and (state in ENDED or paused):
        sweep_progress.finish_if_done(connection, run.sweep_id)


def _response(connection: sqlite3.Connection, run: Run) -> dict[str, Any]:
    changed = runs.get(connection, run.id)
    assert changed is not None
    return {"exitcode": changed.exitcode, "limits": {}, "stopped": changed.stop_requested}
