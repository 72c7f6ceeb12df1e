"""Decides whether to keep a run's old lines when its id starts again without resume.

Two cases look the same at the start: a new attempt under an old id, which replaces the old data, and `wandb
sync`, which resends an earlier attempt's lines, perhaps fewer than the server has. So the server keeps the
old lines until the first chunk of each stream arrives. Lines hold timestamps: if the first line equals the
old one, the stream is a resend and later lines are kept; otherwise it is cleared.
"""

import json
import sqlite3
from enum import StrEnum

from kto_sweep.server import sweep_progress
from kto_sweep.server.store import lines, runs
from kto_sweep.server.store.lines import Stream
from kto_sweep.server.store.runs import Run


class StreamStatus(StrEnum):
    """State of one stream of a restarted run; stored in the database."""

    UNSEEN = "unseen"
    """No chunk has arrived yet."""
    SAME = "same"
    """The old lines are being resent."""
    NEW = "new"
    """The old lines were cleared."""


def mark_restarted(connection: sqlite3.Connection, run: Run) -> None:
    """Marks all streams as unseen: the run was started again without resume."""
    runs.update(connection, run.id, restart=dict.fromkeys(Stream, StreamStatus.UNSEEN))


def before_chunk(connection: sqlite3.Connection, run: Run, stream: Stream, offset: int, first: str) -> Run:
    """Prepares the stream for a chunk that starts with line `first` at `offset`; the updated run."""
    if run.restart.get(stream) != StreamStatus.UNSEEN:
        return run
    same = _is_same(lines.at(connection, run.id, stream, offset), first)
    if not same:
        _clear(connection, run, stream)
    runs.update(
        connection, run.id, restart={**run.restart, stream: StreamStatus.SAME if same else StreamStatus.NEW}
    )
    changed = runs.get(connection, run.id)
    assert changed is not None
    return changed


def _is_same(old: str | None, new: str) -> bool:
    """Whether two lines are equal; JSON rows are compared regardless of key order."""
    old_row, new_row = lines.as_row(old or ""), lines.as_row(new)
    if old_row is None or new_row is None:
        return old == new
    return json.dumps(old_row, sort_keys=True) == json.dumps(new_row, sort_keys=True)


def finish(connection: sqlite3.Connection, run: Run) -> None:
    """Clears unseen streams of a new attempt that ended; a resend keeps them."""
    if StreamStatus.SAME not in run.restart.values():
        for stream, status in run.restart.items():
            if status == StreamStatus.UNSEEN:
                _clear(connection, run, Stream(stream))
    runs.update(connection, run.id, restart={})


def is_unseen(run: Run, stream: Stream) -> bool:
    """Whether the stream holds only an earlier attempt's lines."""
    return run.restart.get(stream) == StreamStatus.UNSEEN


def _clear(connection: sqlite3.Connection, run: Run, stream: Stream) -> None:
    lines.clear(connection, run.id, stream)
    if stream is Stream.HISTORY:
        sweep_progress.clear_values(connection, run.id)
