"""The one server process of a home: its lock, gone with the process however that ends, and its address.

home/server/lock            an flock; holds the process id
home/server/address.json    outlives its server, so that the next one takes the same port
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
    """Whether this process got the home's lock, which it keeps until the end of the block."""
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
    """The process id of the server that holds the lock; None when no server runs."""
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
class Address:
    """Where a server listens, or last did."""

    url: str
    """As clients on this box reach it, without a slash at the end."""
    port: int
    pid: int
    version: str


def read_address(home: Home) -> Address | None:
    """The last server's address; None when there was none or the file cannot be read."""
    try:
        values = json.loads((home.server / "address.json").read_text(encoding="utf-8"))
        return Address(str(values["url"]), int(values["port"]), int(values["pid"]), str(values["version"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_address(home: Home, address: Address) -> None:
    """Replace the file; a reader sees the old one or the new one."""
    path = home.server / "address.json"
    fresh = path.with_name("address.json.new")
    fresh.write_text(json.dumps(asdict(address)), encoding="utf-8")
    fresh.replace(path)
