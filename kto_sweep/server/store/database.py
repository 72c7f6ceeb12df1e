"""One SQLite file in WAL mode: a single writer thread, and a reading connection per thread.

Writes that arrive together share one commit, hence one flush to disk. `Database.write` returns only after
that commit, with synchronous=FULL: what a client was told is stored survives kill -9 and power loss.
"""

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kto_sweep.server.store.patterns import matches_pattern

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], Any]

BUSY_SECONDS = 5.0
"""How long to wait for a lock that another process (a backup, a shell) holds on the file."""
MAX_BATCH = 200
"""Writes per commit at most, so that no client waits for an endless batch."""


class StoreUnavailable(Exception):
    """The database cannot be written now (full disk, locked, damaged); the client should try again."""


@dataclass(frozen=True)
class _Job:
    """One write that waits for the writer thread."""

    work: Work
    done: "Future[Any]" = field(default_factory=Future)


class Database:
    """The open database. Close it to flush and release the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._readers_lock = threading.Lock()
        self._writer = threading.Thread(target=self._write_until_closed, name="kto-sweep-writer", daemon=True)
        self._writer.start()

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returned, once it is committed.

        `work` runs alone, in the writer thread; whatever it raises undoes its changes and comes out here.
        Raises StoreUnavailable when SQLite cannot commit.
        """
        job = _Job(work)
        self._jobs.put(job)
        return job.done.result()  # type: ignore[no-any-return]

    def reader(self) -> sqlite3.Connection:
        """This thread's own connection, unable to write; sees every committed change."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = connect(self._path)
            connection.execute("PRAGMA query_only = ON")
            self._local.connection = connection
            with self._readers_lock:
                self._readers.append(connection)
        return connection

    def close(self) -> None:
        """Commit what waits, then close every connection."""
        self._jobs.put(None)
        self._writer.join()
        with self._readers_lock:
            for connection in self._readers:
                connection.close()
            self._readers.clear()

    def _write_until_closed(self) -> None:
        connection = connect(self._path)
        closing = False
        while not closing:
            batch, closing = self._next_batch()
            if batch:
                _commit_together(connection, batch)
        connection.close()

    def _next_batch(self) -> tuple[list[_Job], bool]:
        """All writes that wait (at least one, or the end), and whether the end was among them."""
        batch: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            batch.append(job)
            if len(batch) == MAX_BATCH:
                return batch, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True


def connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit mode, with the settings that every connection here needs."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.create_function("matches_pattern", 3, matches_pattern, deterministic=True)
    return connection


def _commit_together(connection: sqlite3.Connection, batch: list[_Job]) -> None:
    """Run each job in a savepoint of one transaction, commit, and only then tell anybody."""
    outcomes: list[tuple[_Job, Any, BaseException | None]] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for job in batch:
            outcomes.append((job, *_run_in_savepoint(connection, job.work)))
        connection.execute("COMMIT")
    except sqlite3.Error as problem:
        _roll_back(connection)
        for job in batch:
            job.done.set_exception(StoreUnavailable(f"the database cannot be written: {problem}"))
        return
    for job, result, error in outcomes:
        if error is None:
            job.done.set_result(result)
        else:
            job.done.set_exception(error)


def _run_in_savepoint(connection: sqlite3.Connection, work: Work) -> tuple[Any, BaseException | None]:
    """What `work` returned, or what it raised after its changes were undone.

    Raises sqlite3.OperationalError and sqlite3.DatabaseError (full disk, damage): these end the whole batch.
    """
    connection.execute("SAVEPOINT job")
    try:
        result = work(connection)
    except sqlite3.IntegrityError as error:
        outcome: tuple[Any, BaseException | None] = (None, error)
    except sqlite3.Error:
        raise
    except Exception as error:
        outcome = (None, error)
    else:
        connection.execute("RELEASE job")
        return result, None
    connection.execute("ROLLBACK TO job")
    connection.execute("RELEASE job")
    return outcome


def _roll_back(connection: sqlite3.Connection) -> None:
    # SQLite has already rolled back by itself after some errors, a full disk among them.
    if connection.in_transaction:
        connection.execute("ROLLBACK")
