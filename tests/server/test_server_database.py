"""The database: acknowledged writes are stored, failed ones rolled back, damaged files left unchanged."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kto_sweep.errors import ServerError
from kto_sweep.server.store import database as database_module
from kto_sweep.server.store import migrations
from kto_sweep.server.store.database import Database, StoreUnavailable
from kto_sweep.server.store.migrations import migrate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.sqlite3"


def add(name: str) -> database_module.Work:
    def work(connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO project (entity, name, created_at) VALUES ('e', ?, 0)", (name,))
        return name

    return work


def project_names(path: Path) -> list[str]:
    with sqlite3.connect(path) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM project ORDER BY id")]
    connection.close()
    return names


def test_write_that_returned_is_seen_by_every_other_connection(path: Path) -> None:
    migrate(path)
    database = Database(path)
    assert database.write(add("a")) == "a"
    assert project_names(path) == ["a"]
    assert database.reader().execute("SELECT name FROM project").fetchone()[0] == "a"
    database.close()


def test_write_that_raises_is_rolled_back_and_others_in_its_batch_are_kept(path: Path) -> None:
    migrate(path)
    database = Database(path)
    begun = threading.Event()

    def fail(connection: sqlite3.Connection) -> None:
        add("lost")(connection)
        raise ValueError("no")

    def hold(connection: sqlite3.Connection) -> None:
        begun.wait()  # so that the writes below wait together and share a commit

    with ThreadPoolExecutor(4) as pool:
        held = pool.submit(database.write, hold)
        results = [pool.submit(database.write, work) for work in (add("a"), fail, add("b"))]
        begun.set()
        held.result()
        assert results[0].result() == "a"
        with pytest.raises(ValueError, match="no"):
            results[1].result()
        assert results[2].result() == "b"
    assert sorted(project_names(path)) == ["a", "b"]
    database.close()


def test_many_writers_lose_nothing(path: Path) -> None:
    migrate(path)
    database = Database(path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: database.write(add(str(number))), range(300)))
    database.close()
    assert sorted(map(int, project_names(path))) == list(range(300))


def test_lock_held_by_another_program_is_reported_and_passes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.1)
    migrate(path)
    database = Database(path)
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        database.write(add("a"))
    other.rollback()
    other.close()
    assert database.write(add("a")) == "a"
    database.close()


def test_full_disk_is_reported_and_nothing_is_half_written(path: Path) -> None:
    migrate(path)
    database = Database(path)
    pages = database.write(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    database.write(lambda c: c.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone())
    with pytest.raises(StoreUnavailable, match="full"):
        database.write(add("x" * 100_000))
    database.write(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchone())
    database.write(add("small"))
    assert project_names(path) == ["small"]
    database.close()


class FailingConnection(sqlite3.Connection):
    """Fails once at the statement `fails_at`, as SQLite does without memory."""

    fails_at: str | None = None

    def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:
        if sql == type(self).fails_at:
            type(self).fails_at = None
            raise MemoryError
        return super().execute(sql, *parameters)


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "SAVEPOINT job", "RELEASE job", "COMMIT"])
def test_write_without_memory_is_answered_and_the_next_one_is_stored(
    path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    migrate(path)
    connect = sqlite3.connect
    monkeypatch.setattr(
        database_module.sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=FailingConnection)
    )
    database = Database(path)
    assert database.write(add("a")) == "a"
    FailingConnection.fails_at = statement
    with pytest.raises(StoreUnavailable, match="cannot be written: MemoryError"):
        database.write(add("lost"))
    assert database.write(add("b")) == "b"
    database.close()
    assert project_names(path) == ["a", "b"]


def test_file_that_was_readonly_at_the_first_write_is_written_when_it_can(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite opens a file that it may not write read-only, and never asks again."""
    migrate(path)
    with monkeypatch.context() as readonly:
        connect = sqlite3.connect
        readonly.setattr(
            database_module.sqlite3,
            "connect",
            lambda path, **k: connect(f"file:{path}?mode=ro", uri=True, **k),
        )
        database = Database(path)
        with pytest.raises(StoreUnavailable, match="readonly"):
            database.write(add("lost"))
    assert database.write(add("a")) == "a"
    database.close()
    assert project_names(path) == ["a"]


def test_reader_cannot_write(path: Path) -> None:
    migrate(path)
    database = Database(path)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        database.reader().execute("DELETE FROM project")
    database.close()


def test_migrating_twice_changes_nothing(path: Path) -> None:
    migrate(path)
    migrate(path)
    assert [file.name for file in path.parent.iterdir()] == ["runs.sqlite3"]


def test_older_file_is_copied_before_it_is_changed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate(path)
    steps = (*migrations.STEPS, "CREATE TABLE later (id INTEGER)")
    monkeypatch.setattr(migrations, "STEPS", steps)
    migrate(path)
    for file, tables in ((path, 1), (path.with_name("runs.sqlite3.version-4"), 0)):
        connection = sqlite3.connect(file)
        count = connection.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'later'").fetchone()
        connection.close()
        assert count == (tables,)


def test_step_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate(path)
    broken = "CREATE TABLE later (id INTEGER); CREATE TABLE later (id INTEGER)"
    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, broken))
    with pytest.raises(ServerError, match="cannot migrate"):
        migrate(path)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(migrations.STEPS) - 1,)
    assert connection.execute("SELECT name FROM sqlite_master WHERE name = 'later'").fetchone() is None
    connection.close()


def test_file_of_a_newer_version_is_rejected(path: Path) -> None:
    migrate(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ServerError, match="newer kto-sweep"):
        migrate(path)


@pytest.mark.parametrize("damage", ["text", "pages"])
def test_damaged_file_is_rejected_and_unchanged(path: Path, damage: str) -> None:
    if damage == "text":
        path.write_text("this is no database, but somebody may want it back" * 100)
    else:
        migrate(path)
        content = bytearray(path.read_bytes())
        content[4096 * 2 : 4096 * 6] = b"\xff" * (4096 * 4)
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(ServerError, match="damaged") as caught:
        migrate(path)
    assert path.name in caught.value.hint
    assert path.read_bytes() == before
