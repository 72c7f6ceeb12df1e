"""Locks between real processes: who gets them, and that they end with their process."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from kto_sweep import locks
from kto_sweep.agent.lease import AgentLease, is_alive, remove_dead_leases
from kto_sweep.home import Home
from kto_sweep.locks import NamedLocks, RunLock, holder, try_exclusive, try_lock

HOLD = """
import os, subprocess, sys, time
from pathlib import Path
from kto_sweep.locks import NamedLocks, RunLock, try_exclusive, try_lock
path, child = Path(sys.argv[1]), 0
{take}
print("held", child, sep="\\n", flush=True)
sys.stdin.read()
"""
FILE = "lock = try_lock(path); assert lock.__enter__()"
RUN = "lock = RunLock(path)"
RUN_EXCLUSIVE = "lock = try_exclusive(path); assert lock.__enter__()"
NAME = "lock = NamedLocks(path); assert lock.try_acquire('row')"
NAME_SHARED = "lock = NamedLocks(path); lock.acquire_shared('row')"

Hold = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def hold(path: Path) -> Iterator[Hold]:
    """Another process that takes a lock and keeps it until it is killed."""
    with ExitStack() as stack:

        def start(take: str) -> "subprocess.Popen[str]":
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", HOLD.format(take=take), str(path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            return process

        yield start


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()


def is_free(path: Path) -> bool:
    with try_lock(path) as held:
        return held


def is_unused(folder: Path) -> bool:
    with try_exclusive(folder) as free:
        return free


# Files: one process at a time.


def test_a_file_stays_locked_until_its_process_is_killed(path: Path, hold: Hold) -> None:
    assert holder(path) is None
    process = hold(FILE)
    assert not is_free(path)
    assert holder(path) == process.pid
    kill(process)
    assert holder(path) is None
    assert is_free(path)


def test_locking_again_keeps_the_file(path: Path) -> None:
    with try_lock(path):
        before = path.stat()
    assert before.st_mode & 0o777 == 0o600
    with try_lock(path) as held:
        assert held
        assert path.stat().st_ino == before.st_ino
        assert holder(path) == os.getpid()
        assert not is_free(path), "a second lock of the same process"
    assert path.stat().st_ino == before.st_ino


def test_holder_neither_creates_a_file_nor_takes_another_reader_for_a_holder(path: Path) -> None:
    assert holder(path) is None
    assert not path.exists()
    path.write_text("4711")  # a process that has ended
    with path.open() as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert holder(path) is None


def test_reading_the_holder_of_a_free_file_does_not_stop_a_lock(path: Path) -> None:
    path.touch()
    reader = os.open(path, os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH)
    timer = threading.Timer(locks.BUSY_SECONDS / 4, os.close, [reader])
    timer.start()
    assert is_free(path)
    timer.join()


@pytest.mark.parametrize("damage", [b"", b"no number", b"\xff\xfe"])
def test_a_holder_without_a_process_id_is_reported_as_0(path: Path, hold: Hold, damage: bytes) -> None:
    hold(FILE)
    path.write_bytes(damage)
    assert holder(path) == 0


def test_a_lock_is_valid_without_space_on_the_disk_for_its_process_id(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, text: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    path.write_text("4711")
    monkeypatch.setattr(locks.os, "pwrite", full)
    with try_lock(path) as held:
        assert held
        assert holder(path) == 0


def test_a_lease_whose_file_was_removed_before_it_was_locked_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another agent that starts at the same moment removes the unlocked file as that of a dead agent."""
    home, flock, removed = Home(tmp_path), fcntl.flock, []

    def remove_before(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(True)
            remove_dead_leases(home)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_before)
    lease = AgentLease(home)
    assert is_alive(home, lease.token)
    lease.end()
    assert not is_alive(home, lease.token)


# Folders of runs: shared or exclusive.


def test_a_run_is_locked_shared_or_exclusively(path: Path, hold: Hold) -> None:
    path.mkdir()
    worker, agent = hold(RUN), RunLock(path)
    assert not is_unused(path)
    kill(worker)
    assert not is_unused(path)
    agent.release()
    agent.release()
    assert is_unused(path)
    assert list(path.iterdir()) == []
    uploader = hold(RUN_EXCLUSIVE)
    assert not is_unused(path)
    kill(uploader)
    RunLock(path).release()


def test_a_shared_lock_of_a_run_waits_for_the_exclusive_one(path: Path, hold: Hold) -> None:
    path.mkdir()
    uploader = hold(RUN_EXCLUSIVE)
    started = time.monotonic()
    with subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {uploader.pid}"]):
        RunLock(path).release()
        assert time.monotonic() - started > 0.2


# Names in one file.


def test_a_name_is_locked_shared_or_exclusively_until_its_process_is_killed(path: Path, hold: Hold) -> None:
    with closing(NamedLocks(path)) as own:
        process = hold(NAME)
        assert not own.try_acquire("row")
        assert own.try_acquire("another row")
        kill(process)
        assert own.try_acquire("row")
        own.release("row")
        process = hold(NAME_SHARED)
        assert not own.try_acquire("row")
        own.acquire_shared("row")
        kill(process)
        assert own.try_acquire("row")


# Child processes.


FORK = "r, w = os.pipe(); child = os.fork(); child or (os.write(w, b'.'), time.sleep(600)); os.read(r, 1)"
EXEC = "child = subprocess.Popen(['sleep', '600']).pid"


@pytest.mark.parametrize("start_child", [FORK, EXEC])
@pytest.mark.parametrize("take", [FILE, RUN, RUN_EXCLUSIVE, NAME])
def test_a_child_does_not_keep_its_parents_lock(path: Path, hold: Hold, take: str, start_child: str) -> None:
    is_folder = take in (RUN, RUN_EXCLUSIVE)
    if is_folder:
        path.mkdir()
    process = hold(f"{take}; {start_child}")
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        kill(process)
        os.kill(child, 0)
        if is_folder:
            assert is_unused(path)
        elif take == FILE:
            assert is_free(path)
        else:
            with closing(NamedLocks(path)) as own:
                assert own.try_acquire("row")
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_that_releases_its_parents_lock_leaves_it_to_the_parent(path: Path, hold: Hold) -> None:
    path.mkdir()
    hold(f"{RUN}; child = os.fork(); child or (lock.release(), os._exit(0)); os.waitpid(child, 0)")
    assert not is_unused(path)
