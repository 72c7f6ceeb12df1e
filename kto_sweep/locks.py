"""Locks between processes. The system drops a process's locks when it ends, however it ends.

try_lock  on a file: one process has it (an agent's lease, the server of a home, a GPU)
RunLock   on a run's folder: those who use the run share it, or one has it alone (try_exclusive)
Locks     on one byte for each name: files and rows of the reference cache, shared or had alone

The first is filelock's. The other two are the system's own: what filelock can share between processes needs
an SQLite file for each lock.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import ClassVar

BUSY_SECONDS = 0.2
"""How long a file must be locked to be somebody's: `holder` locks it as well, for microseconds."""


@contextmanager
def try_lock(path: Path, seconds: float = BUSY_SECONDS) -> Iterator[bool]:
    """Whether nobody else has the file; then it is locked until the block ends, with our process id in it.

    It waits for so many seconds, -1: until the file is free. The file is made if it is missing, and stays.
    Raises OSError where files cannot be locked.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(
        path,
        timeout=seconds,
        poll_interval=BUSY_SECONDS / 20,
        mode=0o600,
        thread_local=False,
        fallback_to_soft=False,  # a file that merely exists would outlive its process
        on_acquired=_write_pid,
    )
    with suppress(Timeout):
        lock.acquire()
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _write_pid(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    with suppress(OSError):  # on a full disk the lock is what counts
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)


def holder(path: Path) -> int | None:
    """Process id of who has the file locked, 0 if it is not in it; None when nobody has.

    It shares a lock for a moment, because two that asked by locking it alone would take each other for the
    holder. Raises OSError where files cannot be locked.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        text = os.read(descriptor, 20)
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)
    return None


class RunLock:
    """Marks a run as in use by this process, until it is released or the process ends in any way.

    A shared flock on the folder itself, so no lock file remains.
    """

    _held: ClassVar[set["RunLock"]] = set()

    def __init__(self, folder: Path, *, alone: bool = False) -> None:
        """Acquires the lock; blocks while another process holds it alone, to upload the run.

        With `alone` it raises BlockingIOError while anybody uses the run.
        """
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        except BaseException:
            os.close(self._folder)
            raise
        self._held.add(self)

    def release(self) -> None:
        """Release the lock; idempotent."""
        if self in self._held:
            self._held.remove(self)
            os.close(self._folder)

    @classmethod
    def release_all(cls) -> None:
        """Close a forked child's copies: the parent's locks would last as long as they are open."""
        for lock in list(cls._held):
            lock.release()


os.register_at_fork(after_in_child=RunLock.release_all)


@contextmanager
def try_exclusive(folder: Path) -> Iterator[bool]:
    """Whether the run is not in use; if so, it stays locked against use until the end of the block."""
    with ExitStack() as stack:
        free = False
        with suppress(BlockingIOError):
            stack.callback(RunLock(folder, alone=True).release)
            free = True
        yield free


class Locks:
    """Locks on names: on one byte each of an empty file that stays, at the hash of the name.

    The system drops a process's locks when it ends, however it ends. Within a process they exclude nothing.
    Two names share a byte with a chance of 2^-62; that costs a wait and no more.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def close(self) -> None:
        """Drop all locks."""
        os.close(self._file)

    def take(self, name: str) -> bool:
        """Whether nobody else had the lock in any way; it is ours alone then."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(name))
        except (BlockingIOError, PermissionError):  # POSIX allows either
            return False
        return True

    def share(self, name: str) -> None:
        """Wait until nobody has the lock alone; it is ours and others' then."""
        fcntl.lockf(self._file, fcntl.LOCK_SH, 1, _place(name))

    def drop(self, name: str) -> None:
        """Let go of the lock."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(name))

    @contextmanager
    def held(self, name: str, *, alone: bool) -> Iterator[None]:
        """Wait for the lock and have it until the end of the block."""
        fcntl.lockf(self._file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, 1, _place(name))
        try:
            yield
        finally:
            self.drop(name)


def _place(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 2
