"""Exports the history of ended runs to Parquet files, which wandb downloads and scans.

wandb caches a file by the run's name and the file's position, and never asks again. So an exported file never
changes: rows that come later are another file. A run whose exported rows were replaced or deleted, or whose
name a deleted run had, is read from the database from then on.
"""

import logging
import re
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from starlette.responses import FileResponse

from kto_sweep.server import history_columns, signed_urls
from kto_sweep.server.errors import NotFoundError
from kto_sweep.server.history_columns import Row, TooManyColumns
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.states import ENDED
from kto_sweep.server.store import exports, lines, runs
from kto_sweep.server.store.exports import Part
from kto_sweep.server.store.lines import Stream
from kto_sweep.server.store.runs import Run

EXPORT_SECONDS = 4.0
"""Seconds after its last message until a run's history is exported; its last rows may come late. On W&B it
takes minutes."""
DOWNLOAD = "download of a run's exported history"
"""Use of a signed URL."""

_log = logging.getLogger(__name__)


def exported(server: ServerState, run: Run) -> list[Part] | None:
    """The files that have the whole history of the run; None if it is not exported."""
    if run.state not in ENDED or server.now() - run.heartbeat_at < EXPORT_SECONDS:
        return None
    parts = _complete(server, run)
    if parts is None:
        with server.export_lock:  # an export takes time and memory, and clients ask again meanwhile
            parts = _complete(server, run) or _extended(server, run)
    return parts


def _complete(server: ServerState, run: Run) -> list[Part] | None:
    """The run's files if they have all of its rows."""
    parts, count = _state(server, run)
    return parts if _are_valid(parts, run) and (parts[-1].end if parts else 0) == count else None


def _extended(server: ServerState, run: Run) -> list[Part] | None:
    """The run's files, with a new one for the rows that they lack; None if it cannot have one."""
    parts, count = _state(server, run)
    part = Part(run.id, len(parts), parts[-1].end if parts else 0, count, run.history_rewrites)
    return [*parts, part] if _are_valid(parts, run) and _export(server, run, part) else None


def _are_valid(parts: Sequence[Part], run: Run) -> bool:
    return all((part.run_id, part.rewrites) == (run.id, run.history_rewrites) for part in parts)


def _state(server: ServerState, run: Run) -> tuple[list[Part], int]:
    """The files of the run's name, and how many lines its history has."""
    reader = server.database.reader()
    return exports.of_run(reader, run), lines.count(reader, run.id, Stream.HISTORY)


def _export(server: ServerState, run: Run, part: Part) -> bool:
    """Writes the file of a part and records it; whether that succeeded."""
    reader, target = server.database.reader(), path_of(server, part)
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        kinds = history_columns.column_kinds(_rows(reader, part))
        history_columns.write_parquet(partial, kinds, _rows(reader, part))
        partial.replace(target)
    except (OSError, ValueError, TooManyColumns) as problem:
        # The rows are in the database: clients read them there.
        _log.warning("the history of run %s is not exported: %s", run.name, problem or "too many keys")
        return False
    finally:
        partial.unlink(missing_ok=True)
    return server.database.write(lambda c: _record(c, run, part))


def _record(connection: sqlite3.Connection, run: Run, part: Part) -> bool:
    if runs.rewrites(connection, run.id, Stream.HISTORY) != part.rewrites:
        return False  # its rows were replaced meanwhile
    exports.add(connection, run, part)
    return True


def _rows(connection: sqlite3.Connection, part: Part) -> Iterator[Row]:
    for step, text in exports.rows(connection, part):
        yield step, lines.as_row(text) or {}


def path_of(server: ServerState, part: Part) -> Path:
    """Path of the file, in the folder of the run's uploaded files."""
    return server.files / str(part.run_id) / f"history-{part.number}.parquet"


def url(server: ServerState, base_url: str, run: Run, part: Part) -> str:
    """URL of the file; its token replaces the API key, which wandb does not send."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", run.name).strip("._") or "run"
    token = signed_urls.sign(server, DOWNLOAD, [part.run_id, part.number])
    return f"{base_url}/history/{token}/{readable}.parquet"


def download(server: ServerState, token: str) -> FileResponse:
    """Sends the file of a URL's token, or a range of it. Raises as signed_urls.verify, NotFoundError."""
    run_id, number = signed_urls.verify(server, DOWNLOAD, token)
    path = path_of(server, Part(run_id, number, 0, 0, 0))
    if not path.is_file():
        raise NotFoundError("no such file")
    return FileResponse(path, media_type="application/vnd.apache.parquet")
