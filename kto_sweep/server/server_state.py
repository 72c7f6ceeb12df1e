"""The state that all parts of the server share: database, clock, random generator, files folder, API key."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kto_sweep.server.store.database import Database

CLOCK_JUMP_SECONDS = 60.0
"""A larger difference between the wall clock and the monotonic clock counts as a clock jump."""


class ServerClock:
    """Wall clock that measures a client's silence only while the server was able to receive.

    Time before the server started, while the machine was suspended, or added by a clock jump does not count.
    """

    def __init__(self, clock: Callable[[], float], steady: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds since the epoch, `steady` monotonic seconds while the machine is awake."""
        self._clock = clock
        self._steady = steady
        self._offset = clock() - steady()
        self.listening_since = clock()
        """Start of the period in which the server could receive, in seconds since the epoch."""

    def now(self) -> float:
        """Seconds since the epoch; restarts the listening period after a clock jump or a suspend."""
        now = self._clock()
        offset = now - self._steady()
        jumped, self._offset = abs(offset - self._offset) > CLOCK_JUMP_SECONDS, offset
        if jumped:
            self.listening_since = now
        return now

    def resumed(self) -> None:
        """Restarts the listening period: the server could not receive until now."""
        self.listening_since = self._clock()

    def seconds_since(self, *timestamps: float) -> float:
        """Seconds since the latest of these timestamps and the start of the listening period.

        Ignores timestamps in the future: they date from before the clock was set back.
        """
        now = self.now()
        past = (time for time in (*timestamps, self.listening_since) if time <= now + CLOCK_JUMP_SECONDS)
        return now - max(past, default=now)


class RowLocks:
    """One lock per row of a table."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[int, threading.Lock] = {}

    def of(self, row: int) -> threading.Lock:
        """The row's lock."""
        with self._guard:
            return self._locks.setdefault(row, threading.Lock())


@dataclass(frozen=True)
class ServerState:
    """Shared state of one running server."""

    database: Database
    files: Path
    """Folder for uploaded files."""
    key: str = field(repr=False)
    """API key that clients must send."""
    clock: ServerClock
    rng: random.Random
    """Source of new names and of random search."""
    locks: RowLocks = field(default_factory=RowLocks)
    """Of sweeps: two searches for one sweep would suggest the same trial."""
    upload_locks: RowLocks = field(default_factory=RowLocks)
    """Of uploads in parts: one request completes an upload."""
    export_lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a run's history is exported."""

    @property
    def artifacts(self) -> Path:
        """Folder for the contents of artifacts."""
        return self.files.with_name("artifacts")

    def now(self) -> float:
        """Seconds since the epoch."""
        return self.clock.now()
