"""Keeps the log of a server in the background small: what fills it must not fill the disk."""

import os
import sys
from pathlib import Path

MAX_LOG = 8 << 20
"""Bytes of server.log, and of server.log.1 with what was logged before."""


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
