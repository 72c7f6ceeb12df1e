"""Notices what no request tells: runs that fell silent, sweeps that are over, a box that slept."""

import logging
import sqlite3
import threading
import time

from kto_sweep.server import objective, rungs
from kto_sweep.server.backend import JUMP_SECONDS, Backend
from kto_sweep.server.states import RunState
from kto_sweep.server.store import runs, sweeps
from kto_sweep.server.store.database import StoreUnavailable

RUN_SILENCE = 300.0
"""Seconds without any sign of life after which a run has crashed. wandb sends one every 30 s, and stays away
for a minute or more after it has lost its server."""
ROUND_SECONDS = 15.0
SLEPT_SECONDS = 60.0
"""A round that comes so late means that the server was not running meanwhile, and could not hear anybody."""

_log = logging.getLogger(__name__)


class Janitor:
    """Makes its rounds in a thread of its own until it is stopped."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="kto-sweep-janitor", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the round that is going on."""
        self._stopped.set()
        self._thread.join()

    def _work(self) -> None:
        last = time.monotonic()
        while not self._stopped.wait(ROUND_SECONDS):
            now = time.monotonic()
            if now - last > SLEPT_SECONDS:
                self._backend.uptime.wake()
            last = now
            try:
                self._backend.database.write(lambda c: make_round(c, self._backend))
            except StoreUnavailable as problem:
                _log.warning("%s", problem)


def make_round(connection: sqlite3.Connection, backend: Backend) -> None:
    """Close silent runs and finished sweeps. Silence counts from when the server was last able to hear."""
    now = backend.now()
    if backend.uptime.silence() > RUN_SILENCE:
        for run in runs.silent_since(connection, now - RUN_SILENCE, now + JUMP_SECONDS):
            runs.update(connection, run.id, state=_state_of_silent(run))
    for sweep in sweeps.open_ones(connection):
        objective.settle(connection, sweep.id)


def _state_of_silent(run: runs.Run) -> RunState:
    if run.state is RunState.PREEMPTING:
        return rungs.state_when_stopped(run) if run.stop_requested else RunState.PREEMPTED
    return rungs.state_when_stopped(run) if run.stop_requested else RunState.CRASHED
