"""One SQLite file in WAL mode: a single writer thread, and a read connection per thread.

Writes that arrive together share one commit, hence one flush to disk. `Database.write` returns only after
that commit, with synchronous=FULL, so that acknowledged writes survive kill -9 and power loss.
"""

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kto_sweep.server.store.patterns import matches_pattern

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], Any]

BUSY_SECONDS = 5.0
"""Seconds to wait for a lock that another process (a backup, a shell) holds on the file."""
MAX_BATCH = 200
"""Maximum writes per commit, to bound a client's wait."""


class StoreUnavailable(Exception):
    """The database is not writable (full disk, locked, damaged); the client should retry."""


@dataclass(frozen=True)
class _Job:
    """A write in the writer thread's queue."""

    work: Work
    done: "Future[Any]" = field(default_factory=Future)


_Outcome = tuple[_Job, Any, BaseException | None]
"""A write, its result, and its exception."""


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
        """Runs `work` in the writer thread and returns its result after the commit.

        An exception in `work` rolls back its changes and is raised here.
        Raises StoreUnavailable when SQLite cannot commit.
        """
        job = _Job(work)
        self._jobs.put(job)
        while not job.done.done() and self.has_writer:
            wait([job.done], BUSY_SECONDS)
        if not job.done.done():
            raise StoreUnavailable("the database cannot be written: restart the server")
        return job.done.result()  # type: ignore[no-any-return]

    @property
    def has_writer(self) -> bool:
        """Whether the thread that answers writes is alive; without it only a restart helps."""
        return self._writer.is_alive()

    def reader(self) -> sqlite3.Connection:
        """This thread's read-only connection; sees every committed change."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = connect(self._path)
            connection.execute("PRAGMA query_only = ON")
            self._local.connection = connection
            with self._readers_lock:
                self._readers.append(connection)
        return connection

    def close(self) -> None:
        """Commits pending writes, then closes all connections."""
        self._jobs.put(None)
        self._writer.join()
        with self._readers_lock:
            for connection in self._readers:
                connection.close()
            self._readers.clear()

    def _write_until_closed(self) -> None:
        connection: sqlite3.Connection | None = None
        closing = False
        while not closing:
            batch, closing = self._next_batch()
            if not batch:
                continue
            try:
                connection = connection or connect(self._path)
                outcomes = _commit_together(connection, batch)
            except BaseException as problem:  # also MemoryError: a thread that ends answers no write
                # SQLite remembers that it opened the file read-only; closing also rolls back.
                _close(connection)
                connection = None
                # kto-sweep's client recognizes a full disk by "cannot be written".
                reason = f"the database cannot be written: {str(problem) or type(problem).__name__}"
                outcomes = [(job, None, StoreUnavailable(reason)) for job in batch]
            for job, result, error in outcomes:
                if error is None:
                    job.done.set_result(result)
                else:
                    job.done.set_exception(error)
        _close(connection)

    def _next_batch(self) -> tuple[list[_Job], bool]:
        """All queued writes (blocks until there is one), and whether the queue was closed."""
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
    """A connection in autocommit mode with this project's pragmas and functions."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.create_function("matches_pattern", 3, matches_pattern, deterministic=True)
    return connection


def _commit_together(connection: sqlite3.Connection, batch: list[_Job]) -> list[_Outcome]:
    """Runs each job in a savepoint of one transaction and commits; the outcome of each job.

    Raises whatever SQLite raises, MemoryError included: nothing is committed then.
    """
    connection.execute("BEGIN IMMEDIATE")
    outcomes = [(job, *_run_in_savepoint(connection, job.work)) for job in batch]
    connection.execute("COMMIT")
    return outcomes


def _run_in_savepoint(connection: sqlite3.Connection, work: Work) -> tuple[Any, BaseException | None]:
    """The result of `work`, or its exception after a rollback of its changes.

    Raises sqlite3.OperationalError, sqlite3.DatabaseError (full disk, damage) and MemoryError, which abort
    the whole batch.
    """
    connection.execute("SAVEPOINT job")
    try:
        result = work(connection)
    except sqlite3.IntegrityError as error:
        outcome: tuple[Any, BaseException | None] = (None, error)
    except (sqlite3.Error, MemoryError):  # Python's name for SQLite's "out of memory"
        raise
    except Exception as error:
        outcome = (None, error)
    else:
        connection.execute("RELEASE job")
        return result, None
    connection.execute("ROLLBACK TO job")
    connection.execute("RELEASE job")
    return outcome


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        with suppress(sqlite3.Error, MemoryError):  # a broken disk; the descriptors are released anyway
            connection.close()
