"""The lock on the database itself: removing the files beside it lets no second server use it."""

import fcntl
import os
import struct
from pathlib import Path

from kto_sweep.errors import ServerError

_BYTE = 1 << 62
"""Offset of the locked byte: beyond SQLite's own locks, which are near 1 GiB."""


class DatabaseLock:
    """Held from before the first connection to the database until after the last one is closed.

    An "open file description" lock: it ends with the process, and SQLite's own locks do not touch it.
    Closing it releases those, which are the process's: nothing else may open the database as a plain file.
    """

    def __init__(self, path: Path) -> None:
        """Locks the database; creates it, empty, if it is not there.

        Raises ServerError when another process has locked it, OSError.
        """
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        kind = fcntl.F_WRLCK
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError:  # a server that can only read still shows its runs
            kind, self._file = fcntl.F_RDLCK, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # struct flock on 64-bit Linux: type, whence, start, length, pid
        request = struct.pack("hhqqi4x", kind, os.SEEK_SET, _BYTE, 1, 0)
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, request)
        except (BlockingIOError, PermissionError) as problem:
            os.close(self._file)
            raise ServerError(
                f"a running server uses {path}; its lock and address.json were removed or are being written",
                hint="it writes them again within seconds: try again",
            ) from problem

    def is_at_its_path(self) -> bool:
        """Whether the locked file is still the one that the next server would open."""
        try:
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Releases the lock."""
        os.close(self._file)
