"""What becomes of a run's lines when its id is started again without resume.

Two things look alike at the start: a new attempt under an old id, which replaces what the old one logged, and
`wandb sync`, which sends an earlier attempt's lines again, perhaps fewer than the server has. So nothing is
thrown away at the start: the first chunk of a stream tells. Every line carries its time; if the first one is
the same as before, the stream is sent again and later lines are kept.
"""

import json
import sqlite3
from enum import StrEnum

from kto_sweep.server import sweep_progress
from kto_sweep.server.store import lines, runs
from kto_sweep.server.store.lines import Stream
from kto_sweep.server.store.runs import Run


class StreamStatus(StrEnum):
    """What is known of one stream of a run that was started again."""

    UNSEEN = "unseen"
    """No chunk of it has come yet."""
    SAME = "same"
    """Its lines are sent again."""
    NEW = "new"
    """Its old lines are gone."""


def mark_restarted(connection: sqlite3.Connection, run: Run) -> None:
    """The run was started without resume: every stream of it is open to question."""
    runs.update(connection, run.id, restart=dict.fromkeys(Stream, StreamStatus.UNSEEN))


def before_chunk(connection: sqlite3.Connection, run: Run, stream: Stream, offset: int, first: str) -> Run:
    """The run as it stands once the stream is ready for a chunk that begins with `first` at line `offset`."""
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
    """Whether two lines say the same; as JSON rows their keys may stand in any order."""
    old_row, new_row = lines.as_row(old or ""), lines.as_row(new)
    if old_row is None or new_row is None:
        return old == new
    return json.dumps(old_row, sort_keys=True) == json.dumps(new_row, sort_keys=True)


def finish(connection: sqlite3.Connection, run: Run) -> None:
    """The run has ended: a stream of which nothing came is empty in a new attempt, kept in one sent again."""
    if StreamStatus.SAME not in run.restart.values():
        for stream, status in run.restart.items():
            if status == StreamStatus.UNSEEN:
                _clear(connection, run, Stream(stream))
    runs.update(connection, run.id, restart={})


def is_unseen(run: Run, stream: Stream) -> bool:
    """Whether the stream still holds only what an earlier attempt logged."""
    return run.restart.get(stream) == StreamStatus.UNSEEN


def _clear(connection: sqlite3.Connection, run: Run, stream: Stream) -> None:
    lines.clear(connection, run.id, stream)
    if stream is Stream.HISTORY:
        sweep_progress.clear_values(connection, run.id)
