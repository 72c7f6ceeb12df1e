"""What every part of the server is handed: the database, the clock, chance, the folder for files, the key."""

import hashlib
import hmac
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kto_sweep.server.store.database import Database


@dataclass
class Uptime:
    """Since when the server has been listening: silence before that is no client's fault."""

    awake_since: float
    """Seconds since the epoch; moved on after a time in which the whole box slept."""


class SweepLocks:
    """One lock per sweep: the search must see one question at a time."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[int, threading.Lock] = {}

    def of(self, sweep_id: int) -> threading.Lock:
        """The lock of the sweep."""
        with self._guard:
            return self._locks.setdefault(sweep_id, threading.Lock())


@dataclass(frozen=True)
class Backend:
    """One running server's parts."""

    database: Database
    files: Path
    """Folder of the uploaded files."""
    key: str = field(repr=False)
    """The API key that clients must send."""
    clock: Callable[[], float]
    """Seconds since the epoch."""
    rng: random.Random
    """Chance for new names and for the search."""
    uptime: Uptime
    """Since when the server has been able to hear its clients."""
    locks: SweepLocks = field(default_factory=SweepLocks)

    def now(self) -> float:
        """Seconds since the epoch."""
        return self.clock()

    def sign(self, text: str) -> str:
        """A token that only this server can make for `text`; 32 hex digits."""
        return hmac.new(self.key.encode(), text.encode(), hashlib.sha256).hexdigest()[:32]
