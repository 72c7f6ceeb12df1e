"""The lock that makes a home's server the only one: an flock, gone with its process however that ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kto_sweep.home import Home


def _path(home: Home) -> Path:
    return home.server / "lock"


@contextmanager
def held(home: Home) -> Iterator[bool]:
    """Whether this process got the home's lock, which it keeps until the end of the block."""
    home.server.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _path(home).open("a+", encoding="ascii") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield True


def holder(home: Home) -> int | None:
    """The process id of the server that holds the lock; None when nobody does."""
    try:
        stream = _path(home).open("r", encoding="ascii")
    except FileNotFoundError:
        return None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = stream.read().strip()
            return int(text) if text.isdecimal() else None
    return None
