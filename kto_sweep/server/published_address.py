"""The files of a running server that commands read: its address, written again when removed, and its log."""

import logging
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.home import Home
from kto_sweep.local_server.process import (
    ServerAddress,
    hold_lock,
    read_address,
    server_pid,
    write_address,
)
from kto_sweep.local_server.start import log_path
from kto_sweep.server.database_lock import DatabaseLock

MAX_LOG = 8 << 20
"""Bytes of server.log, and of server.log.1 with what was logged before."""
RESTORE_SECONDS = 2
"""Seconds between two looks at the files."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedAddress:
    """The address of a running server, in its home."""

    home: Home
    address: ServerAddress
    database: DatabaseLock
    locks: ExitStack
    """Closed when the server ends."""

    def write(self) -> None:
        """Writes the address for commands. Raises OSError."""
        write_address(self.home, self.address)

    def restore(self) -> bool:
        """Writes again what was removed, and limits the log.

        False if the database itself was removed: the server would serve a lost file.
        """
        if not self.database.is_at_its_path():
            _log.error("%s was removed or replaced: the server stops", self.home.database)
            return False
        try:
            is_locked = server_pid(self.home) == os.getpid() or self.locks.enter_context(hold_lock(self.home))
            if is_locked and read_address(self.home) != self.address:
                self.write()
            limit_log(log_path(self.home))
        except OSError as problem:  # a full disk
            _log.warning("the server's address or log cannot be written: %s", problem)
        return True


def limit_log(path: Path) -> None:
    """Moves a log that has grown too large to `<path>.1`, of which the end is kept.

    Only if this process logs to that file: its stderr is then in append mode, and continues at the start.
    Raises OSError.
    """
    descriptor = sys.__stderr__.fileno() if sys.__stderr__ is not None else -1
    if descriptor < 0 or not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
        return
    size = path.stat().st_size
    if size > MAX_LOG:
        with path.open("rb") as log:
            log.seek(size - MAX_LOG)
            path.with_name(f"{path.name}.1").write_bytes(log.read(MAX_LOG))
        os.truncate(path, 0)
