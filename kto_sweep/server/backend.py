"""What every part of the server is handed: the database, the clock, chance, the folder for files, the key."""

import hashlib
import hmac
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kto_sweep.server.store.database import Database

JUMP_SECONDS = 60.0
"""A clock that is set by more than this has jumped."""


class Uptime:
    """The server's clock, and how long a client has been silent while the server could hear it.

    Silence before the server was there is no client's fault, nor is what a clock that was set makes up of it.
    """

    def __init__(self, clock: Callable[[], float], steady: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds since the epoch, `steady` seconds that pass evenly while the box is awake."""
        self._clock = clock
        self._steady = steady
        self._lead = clock() - steady()
        self.awake_since = clock()
        """Seconds since the epoch; moved on by `wake`."""

    def now(self) -> float:
        """Seconds since the epoch; a clock that has jumped, or a box that has slept, is noticed."""
        now = self._clock()
        lead = now - self._steady()
        jumped, self._lead = abs(lead - self._lead) > JUMP_SECONDS, lead
        if jumped:
            self.awake_since = now
        return now

    def wake(self) -> None:
        """The server could hear nobody until now."""
        self.awake_since = self._clock()

    def silence(self, *signs: float) -> float:
        """Seconds since the last of these signs of life, and since the server can hear.

        Signs that are yet to come are from before the clock was set back, and tell nothing.
        """
        now = self.now()
        heard = (sign for sign in (*signs, self.awake_since) if sign <= now + JUMP_SECONDS)
        return now - max(heard, default=now)


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
    uptime: Uptime
    """The clock."""
    rng: random.Random
    """Chance for new names and for the search."""
    locks: SweepLocks = field(default_factory=SweepLocks)

    def now(self) -> float:
        """Seconds since the epoch."""
        return self.uptime.now()

    def sign(self, text: str) -> str:
        """A token that only this server can make for `text`; 32 hex digits."""
        return hmac.new(self.key.encode(), text.encode(), hashlib.sha256).hexdigest()[:32]
