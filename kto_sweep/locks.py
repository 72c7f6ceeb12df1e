"""Locks between processes. The system releases them when the process ends, for any reason.

try_lock    exclusive, on a file: an agent's lease, the server of a home, a GPU
RunLock     shared or exclusive, on a run's folder
NamedLocks  shared or exclusive, by name in one file: files and rows of the reference cache

try_lock uses filelock. The other two use the system's calls: filelock's shared locks need an SQLite file
each.
"""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import ClassVar

BUSY_SECONDS = 0.2
"""Seconds that try_lock waits, as `holder` locks files for microseconds."""


def private_folder(path: Path) -> Path:
    """The folder, created if necessary, which belongs to this user and to which no other user can write.

    Raises OSError if it is a link, or another user's: its files could be links to files of this user.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "the folder belongs to another user", str(path))
        if found.st_mode & 0o077:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
    return path


@contextmanager
def try_lock(path: Path, seconds: float = BUSY_SECONDS) -> Iterator[bool]:
    """Lock a file until the end of the block, with this process's id in it; whether that succeeded.

    Waits up to `seconds`; -1: until the file is free. The file is created if necessary, and never removed.
    Raises OSError without support for locks, and if the file is a link: it is never followed.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(
        path,
        timeout=seconds,
        poll_interval=BUSY_SECONDS / 20,
        mode=0o600,
        thread_local=False,
        fallback_to_soft=False,  # a lock by the file's existence would outlive its process
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
    with suppress(OSError):  # on a full disk: the lock alone is enough
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)


def holder(path: Path) -> int | None:
    """Id of the process that has locked the file, 0 if unknown; None if the file is not locked.

    Tries a shared lock: with exclusive ones, two callers would take each other for the holder. Raises OSError
    without support for locks.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
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

    def __init__(self, folder: Path, *, exclusive: bool = False) -> None:
        """Acquire the lock; blocks while another process has it exclusively, to upload the run.

        With `exclusive`, raises BlockingIOError while any process uses the run.
        """
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
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
            stack.callback(RunLock(folder, exclusive=True).release)
            free = True
        yield free


class NamedLocks:
    """Locks on names: each on one byte of an empty file, at the hash of the name.

    They work between processes only. Two names share a byte with a probability of 2^-62, which only costs a
    wait.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    def close(self) -> None:
        """Release all locks."""
        os.close(self._file)

    def try_acquire(self, name: str) -> bool:
        """Try to acquire a lock exclusively."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(name))
        except (BlockingIOError, PermissionError):  # POSIX allows either
            return False
        return True

    def acquire_shared(self, name: str) -> None:
        """Acquire a shared lock; blocks while another process has it exclusively."""
        fcntl.lockf(self._file, fcntl.LOCK_SH, 1, _place(name))

    def release(self, name: str) -> None:
        """Release a lock."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(name))

    @contextmanager
    def held(self, name: str, *, exclusive: bool) -> Iterator[None]:
        """Acquire a lock until the end of the block; blocks while it is not available."""
        fcntl.lockf(self._file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, 1, _place(name))
        try:
            yield
        finally:
            self.release(name)


def _place(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 2
