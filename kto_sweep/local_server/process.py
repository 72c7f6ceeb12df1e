"""The lock that allows one server per home, and the file that records its address.

home/server/lock            flock of the running server, with its process id; the kernel releases it on exit
home/server/address.json    kept after the server exits, so that the next server reuses the port
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from kto_sweep.home import Home


def _lock_path(home: Home) -> Path:
    return home.server / "lock"


@contextmanager
def hold_lock(home: Home) -> Iterator[bool]:
    """Yields whether this process acquired the home's lock; the lock is held until the block ends."""
    home.server.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _lock_path(home).open("a+", encoding="ascii") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield True


def server_pid(home: Home) -> int | None:
    """Process id of the running server; None when no process holds the lock."""
    try:
        stream = _lock_path(home).open("r", encoding="ascii")
    except FileNotFoundError:
        return None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = stream.read().strip()
            return int(text) if text.isdecimal() else None
    return None


@dataclass(frozen=True)
class ServerAddress:
    """The address a server listens on, or last listened on."""

    url: str
    """URL for clients on this machine, without a trailing slash."""
    port: int
    pid: int
    version: str


def read_address(home: Home) -> ServerAddress | None:
    """The last recorded address; None when the file is missing or unreadable."""
    try:
        values = json.loads((home.server / "address.json").read_text(encoding="utf-8"))
        return ServerAddress(
            str(values["url"]), int(values["port"]), int(values["pid"]), str(values["version"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_address(home: Home, address: ServerAddress) -> None:
    """Replaces the address file atomically."""
    path = home.server / "address.json"
    fresh = path.with_name("address.json.new")
    fresh.write_text(json.dumps(asdict(address)), encoding="utf-8")
    fresh.replace(path)
