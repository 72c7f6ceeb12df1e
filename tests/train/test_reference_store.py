"""The cache file: damage, full disks, removal while it is in use."""

import multiprocessing
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kto_sweep.errors import FailureCause, KtoSweepError, TrialFailure
from kto_sweep.train.reference_store import Pair, ReferenceStore, entries, remove

# The forked children use SQLite alone, none of the threads that Python warns about.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

ABOUT = {"model": "tiny", "fingerprint": "ab12", "quantization": "none", "dtype": "float32"}


def scores(n: int) -> dict[bytes, Pair]:
    return {bytes([at // 256, at % 256] * 16): (-at / 7, -at / 3) for at in range(n)}


def filled(folder: Path, n: int = 500) -> Path:
    with ReferenceStore(folder, "base", ABOUT, print) as store:
        store.touch(1e9)
        store.put(scores(n))
    return folder / "base.sqlite"


def read(folder: Path, n: int = 500) -> tuple[dict[bytes, Pair], list[str]]:
    """The values that a store reads, and its messages."""
    messages: list[str] = []
    with ReferenceStore(folder, "base", ABOUT, messages.append) as store:
        return store.get(scores(n)), messages


def test_values_come_back_bit_for_bit(tmp_path: Path) -> None:
    odd = {b"a": (-1e-300, -0.1 - 0.2), b"b": (-0.0, 0.0), b"c": (-3.0, -1e17)}
    with ReferenceStore(tmp_path, "base", ABOUT, print) as store:
        store.put(odd)
        assert store.get([b"b", b"a", b"x", b"c"]) == odd
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.sqlite", "lock"]


def test_a_wrong_value_is_left_out_and_reported(tmp_path: Path) -> None:
    path = filled(tmp_path)
    rows = list(scores(500))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE scores SET matched = matched + 1e-9 WHERE row = ?", (rows[3],))
        connection.execute("UPDATE scores SET mismatched = NULL WHERE row = ?", (rows[4],))
        connection.execute("UPDATE scores SET checksum = 'x' WHERE row = ?", (rows[5],))
    values, messages = read(tmp_path)
    assert values == {row: pair for row, pair in scores(500).items() if row not in rows[3:6]}
    assert messages == [f"3 rows of {path} were damaged and are computed again"]


@pytest.mark.slow  # every bit of a file, one by one
def test_a_flipped_bit_anywhere_gives_no_wrong_value_and_is_repaired(tmp_path: Path) -> None:
    whole = filled(tmp_path).read_bytes()
    for at in range(20, len(whole), 211):
        (tmp_path / "base.sqlite").write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with ReferenceStore(tmp_path, "base", ABOUT, lambda _: None) as store:
            store.touch(2e9)
            assert store.get(scores(500)).items() <= scores(500).items()
            store.check()
            store.put(scores(500))
            assert store.get(scores(500)) == scores(500)
        assert entries(tmp_path)
        for aside in tmp_path.glob("*.damaged"):
            aside.unlink()


@pytest.mark.parametrize("damage", ["not a database", "cut", "no header"])
def test_a_damaged_file_is_moved_aside_and_reported(tmp_path: Path, damage: str) -> None:
    path = filled(tmp_path)
    data = path.read_bytes()
    damaged = {"not a database": b"x" * 9999, "cut": data[: len(data) // 2], "no header": b"\0" * 64 + data}
    path.write_bytes(damaged[damage])
    values, messages = read(tmp_path)
    assert values == {}
    (aside,) = tmp_path.glob("*.damaged")
    assert aside.read_bytes() == damaged[damage]
    assert messages == [f"the reference cache was damaged: moved to {aside}, its values are computed again"]
    filled(tmp_path)
    assert read(tmp_path) == (scores(500), [])


def test_a_file_with_other_tables_is_moved_aside(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "base.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE scores (something TEXT)")
    values, messages = read(tmp_path)
    assert (values, len(messages)) == ({}, 1)
    assert len(list(tmp_path.glob("*.damaged"))) == 1


def _read_together(folder: str, barrier: Any, count: Any) -> None:
    barrier.wait()
    _, messages = read(Path(folder))
    with count.get_lock():
        count.value += len(messages)


def test_one_of_several_processes_moves_a_damaged_file_aside(tmp_path: Path) -> None:
    (tmp_path / "base.sqlite").write_bytes(b"x" * 9999)
    context = multiprocessing.get_context("fork")
    barrier, count = context.Barrier(4), context.Value("i", 0)
    readers = [context.Process(target=_read_together, args=(str(tmp_path), barrier, count)) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0] * 4
    assert count.value == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".damaged", ".sqlite"]


def test_an_empty_file_is_an_empty_cache(tmp_path: Path) -> None:
    (tmp_path / "base.sqlite").touch()
    assert read(tmp_path) == ({}, [])


def test_a_half_written_transaction_is_rolled_back(tmp_path: Path) -> None:
    path = filled(tmp_path)
    pid = os.fork()
    if pid == 0:  # dies with a transaction whose pages are partly in the file
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.execute("UPDATE scores SET matched = 0, checksum = zeroblob(900)")
        os._exit(0)
    os.waitpid(pid, 0)
    assert (tmp_path / "base.sqlite-journal").exists()
    assert read(tmp_path) == (scores(500), [])


def test_a_folder_that_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(KtoSweepError, match=r"the reference cache .*file cannot be used: .*exists") as raised,
        ReferenceStore(tmp_path / "file", "base", ABOUT, print),
    ):
        pass
    assert "KTO_SWEEP_HOME" in raised.value.hint


def test_a_full_disk_is_the_cause_of_the_failure(tmp_path: Path) -> None:
    def write_too_much(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA max_page_count = 3")
        connection.execute("INSERT INTO scores VALUES (zeroblob(99999), 0, 0, 0)")

    filled(tmp_path)
    with ReferenceStore(tmp_path, "base", ABOUT, print) as store, pytest.raises(TrialFailure) as raised:
        store._with_file(write_too_much)
    assert raised.value.cause is FailureCause.DISK_FULL


def test_entries_name_their_base_model(tmp_path: Path) -> None:
    path = filled(tmp_path)
    (tmp_path / "broken.sqlite").write_bytes(b"x" * 5000)
    (tmp_path / "old.77.damaged").write_bytes(path.read_bytes())
    by_name = {entry.path.name: entry for entry in entries(tmp_path)}
    assert set(by_name) == {"base.sqlite", "broken.sqlite", "old.77.damaged"}
    assert by_name["base.sqlite"].about == ABOUT
    assert (by_name["base.sqlite"].rows, by_name["base.sqlite"].used) == (500, 1e9)
    assert by_name["base.sqlite"].size == path.stat().st_size
    assert [by_name[name].rows for name in ("broken.sqlite", "old.77.damaged")] == [None, None]
    assert entries(tmp_path / "absent") == []


def test_use_is_recorded_once_an_hour(tmp_path: Path) -> None:
    filled(tmp_path)
    for now, used in ((1e9 + 60, 1e9), (1e9 + 3601, 1e9 + 3601)):
        with ReferenceStore(tmp_path, "base", ABOUT, print) as store:
            store.touch(now)
        assert entries(tmp_path)[0].used == used


def _keep_open(folder: str, opened: Any, close: Any) -> None:
    with ReferenceStore(Path(folder), "base", ABOUT, print):
        opened.set()
        close.wait()


def test_a_file_in_use_is_not_removed(tmp_path: Path) -> None:
    filled(tmp_path)
    context = multiprocessing.get_context("fork")
    opened, close = context.Event(), context.Event()
    user = context.Process(target=_keep_open, args=(str(tmp_path), opened, close))
    user.start()
    opened.wait()
    (entry,) = entries(tmp_path)
    assert not remove(entry)
    assert entries(tmp_path) == [entry]
    close.set()
    user.join()
    assert remove(entry)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
