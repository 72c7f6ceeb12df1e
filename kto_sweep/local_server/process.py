"""The lock that allows one server per home, and the file that records its address.

home/server/lock            flock of the running server, with its process id; the kernel releases it on exit
home/server/address.json    kept after the server exits, so that the next server reuses the port
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.home import Home
from kto_sweep.json_file import read_record_file, write_record
from kto_sweep.locks import holder, try_lock


def _lock_path(home: Home) -> Path:
    return home.server / "lock"


@contextmanager
def hold_lock(home: Home) -> Iterator[bool]:
    """Yields whether this process acquired the home's lock; the lock is held until the block ends."""
    home.server.mkdir(mode=0o700, parents=True, exist_ok=True)
    with try_lock(_lock_path(home)) as held:
        yield held


def server_pid(home: Home) -> int | None:
    """Process id of the running server; None when no process holds the lock."""
    return holder(_lock_path(home)) or None


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
    return read_record_file(ServerAddress, home.server / "address.json")


def write_address(home: Home, address: ServerAddress) -> None:
    """Replaces the address file atomically."""
    write_record(home.server / "address.json", address)
