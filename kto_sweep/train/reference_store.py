"""Log-probs by row on disk: one SQLite file per base model, shared by all processes with access to the
folder.

    <folder>/<name>.sqlite          by row: a hash of its tokens, two log-probs, their checksum
    <folder>/<name>.<time>.damaged  a file that SQLite could not read, set aside
    <folder>/lock                   which process uses which file and computes which rows: see NamedLocks

A file is open for milliseconds at a time. It has a rollback journal, not a write-ahead log: machines of a
cluster often share a home over a network, and a write-ahead log needs all readers on one machine.
No torch and no numpy here: `kto-sweep cache` reads these files too.
"""

import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from kto_sweep.errors import FailureCause, KtoSweepError, TrialFailure, is_disk_full
from kto_sweep.locks import NamedLocks

T = TypeVar("T")
Pair = tuple[float, float]
"""Log-probs of the matched and of the mismatched completion, nats."""
Note = Callable[[str], None]
"""Gets one line for people."""

_TABLES = (
    "CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS scores (row BLOB PRIMARY KEY, matched REAL, mismatched REAL, checksum BLOB)"
    " WITHOUT ROWID",
)
_BUSY_SECONDS = 60.0
"""Timeout for another process's write, which takes milliseconds."""
_USED_EVERY = 3600.0
"""Seconds between updates of the time of last use: reading should rarely write."""
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
"""Errors whose cause is the file; SQLITE_ERROR: its tables are not those above."""
_UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)
"""UnicodeDecodeError: SQLite's message can quote what it cannot read."""


class ReferenceStore:
    """The log-probs of one base model. Within its context no other process removes them.

    All methods raise KtoSweepError when the folder cannot be used, TrialFailure when its disk is full.
    """

    def __init__(self, folder: Path, name: str, about: Mapping[str, str], note: Note) -> None:
        """`about` describes the base model, for people: see Entry. `note` gets a line about damage."""
        self._folder = folder
        self._name = name
        self._path = folder / f"{name}.sqlite"
        self._about = about
        self._note = note

    def __enter__(self) -> "ReferenceStore":
        with _explained(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._locks = NamedLocks(self._folder / "lock")
            self._locks.acquire_shared(_use(self._name))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._locks.close()

    def touch(self, now: float) -> None:
        """Record the base model's description and the time of use, `now` in seconds since 1970."""

        def write(connection: sqlite3.Connection) -> None:
            known = dict(connection.execute("SELECT name, value FROM about"))
            wanted = dict(self._about)
            if now - (_number(known.get("used")) or 0) > _USED_EVERY:
                wanted["used"] = str(now)
            news = [item for item in wanted.items() if known.get(item[0]) != item[1]]
            connection.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", news)

        self._with_file(write)

    def get(self, rows: Iterable[bytes]) -> dict[bytes, Pair]:
        """Those of `rows` that are stored and intact."""
        asked = list(rows)

        def read(connection: sqlite3.Connection) -> dict[bytes, Pair]:
            found, wrong = {}, 0
            for row in asked:
                query = "SELECT matched, mismatched, checksum FROM scores WHERE row = ?"
                values = connection.execute(query, (row,)).fetchone()
                if values is not None and values[2] == _checksum(row, *values[:2]):
                    found[row] = (values[0], values[1])
                else:
                    wrong += values is not None
            if wrong:
                self._note(f"{wrong} rows of {self._path} were damaged and are computed again")
            return found

        return self._with_file(read)

    def put(self, scores: Mapping[bytes, Pair]) -> None:
        """Store `scores` by row; they are on the disk when this returns."""
        # SQLite keeps -0.0 as 0.0, which has another checksum.
        pairs = {row: (matched + 0.0, mismatched + 0.0) for row, (matched, mismatched) in scores.items()}
        lines = [(row, *pair, _checksum(row, *pair)) for row, pair in pairs.items()]

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", lines)

        self._with_file(write)

    def check(self) -> None:
        """Read the whole file, and set it aside if any part is damaged."""
        with _explained(self._path):
            self._set_aside_damaged()

    def claim(self, row: bytes) -> bool:
        """Claim `row` until `release`; False if another process has it."""
        with _explained(self._folder):
            return self._locks.try_acquire(self._row(row))

    def release(self, rows: Iterable[bytes]) -> None:
        """Let others claim `rows`."""
        for row in rows:
            self._locks.release(self._row(row))

    def _row(self, row: bytes) -> str:
        return f"{self._name} row {row.hex()}"

    def _with_file(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The result of `work` in one transaction; a damaged file is first replaced by an empty one."""
        with _explained(self._path):
            try:
                return self._transaction(work)
            except _UNREADABLE as error:
                if not _is_damage(error):
                    raise
            self._set_aside_damaged()
            return self._transaction(work)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with (
            self._locks.held(_file(self._name), exclusive=False),
            closing(_connect(str(self._path))) as connection,
            connection,
        ):
            for table in _TABLES:
                connection.execute(table)
            return work(connection)

    def _set_aside_damaged(self) -> None:
        aside = self._path.with_suffix(f".{time.time():.0f}.damaged")
        with self._locks.held(_file(self._name), exclusive=True):
            if not self._path.exists() or _intact(self._path):
                return
            # First: SQLite would play a journal that outlives its file back into the next one.
            _journal(self._path).unlink(missing_ok=True)
            self._path.rename(aside)
        self._note(f"the reference cache was damaged: moved to {aside}, its values are computed again")


@dataclass(frozen=True)
class Entry:
    """One file of the folder."""

    path: Path
    about: Mapping[str, str]
    """`model`, `fingerprint`, `quantization` and `dtype` of the base model; empty for a damaged file."""
    rows: int | None
    """None for a damaged file."""
    size: int
    """Bytes."""
    used: float
    """When it was last used, to the hour, in seconds since 1970."""


def entries(folder: Path) -> list[Entry]:
    """All files of the folder, most recently used first."""
    paths = [path for kind in ("*.sqlite", "*.damaged") for path in folder.glob(kind)]
    found = []
    for path in paths:
        with suppress(FileNotFoundError):  # removed meanwhile
            found.append(_entry(path))
    return sorted(found, key=lambda entry: -entry.used)


def remove(entry: Entry) -> bool:
    """Remove a file; False if a process uses it."""
    name = entry.path.stem
    with _explained(entry.path), closing(NamedLocks(entry.path.parent / "lock")) as locks:
        if not locks.try_acquire(_use(name)):
            return False
        with locks.held(_file(name), exclusive=True):
            _journal(entry.path).unlink(missing_ok=True)
            entry.path.unlink(missing_ok=True)
    return True


def _entry(path: Path) -> Entry:
    about, rows = ({}, None) if path.suffix == ".damaged" else _read_about(path)
    state = path.stat()
    used = _number(about.pop("used", None))
    return Entry(path, about, rows, state.st_size, state.st_mtime if used is None else used)


def _read_about(path: Path) -> tuple[dict[str, str], int | None]:
    """The description of the file's base model, and its number of rows."""
    try:
        # Without mode=rw SQLite would create a file that was removed.
        with closing(_connect(f"{path.as_uri()}?mode=rw")) as connection:
            about = dict(connection.execute("SELECT name, value FROM about"))
            return about, connection.execute("SELECT count(*) FROM scores").fetchone()[0]
    except _UNREADABLE:
        return {}, None


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, uri=path.startswith("file:"))
    connection.text_factory = lambda text: text.decode(errors="replace")  # it may be damaged
    return connection


def _number(text: str | None) -> float | None:
    """A number as text, which may be missing or damaged."""
    try:
        return float(text or "")
    except ValueError:
        return None


def _use(name: str) -> str:
    """Lock name: shared by users of the file, exclusive to remove it."""
    return f"{name} use"


def _file(name: str) -> str:
    """Lock name: shared by processes with the file open, exclusive to rename or remove it."""
    return f"{name} file"


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}-journal")


def _checksum(row: bytes, matched: object, mismatched: object) -> bytes:
    """8 bytes. Of the values as text: exact for floats, and works for anything in a damaged file."""
    return hashlib.blake2b(repr((row, matched, mismatched)).encode(), digest_size=8).digest()


def _is_damage(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return code in _DAMAGE or isinstance(error, UnicodeDecodeError)


def _intact(path: Path) -> bool:
    try:
        with closing(_connect(str(path))) as connection:
            connection.execute("SELECT name, value FROM about").fetchone()
            connection.execute("SELECT row, matched, mismatched, checksum FROM scores").fetchone()
            verdict: str = connection.execute("PRAGMA integrity_check").fetchone()[0]
    except _UNREADABLE as error:
        if not _is_damage(error):
            raise
        return False
    return verdict == "ok"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of SQLite and the file system into errors that say what to do."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        full = is_disk_full(error) or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        if full:
            raise TrialFailure(
                FailureCause.DISK_FULL, f"{path}: {error}", hint="free some space, or kto-sweep cache --prune"
            ) from error
        raise KtoSweepError(
            f"the reference cache {path} cannot be used: {error}",
            hint="set KTO_SWEEP_HOME to a folder that can be written to",
        ) from error
