"""Locks between processes, by name. No torch here."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
