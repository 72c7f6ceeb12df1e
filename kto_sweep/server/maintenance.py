"""Notices what no request tells: runs that fell silent, sweeps that are over, a box that slept."""

import logging
import sqlite3
import threading
import time

from kto_sweep.server import successive_halving, sweep_progress
from kto_sweep.server.server_state import CLOCK_JUMP_SECONDS, ServerState
from kto_sweep.server.states import RunState
from kto_sweep.server.store import runs, sweeps
from kto_sweep.server.store.database import StoreUnavailable

RUN_TIMEOUT = 300.0
"""Seconds without any sign of life after which a run has crashed. wandb sends one every 30 s, and stays away
for a minute or more after it has lost its server."""
INTERVAL_SECONDS = 15.0
SUSPENDED_SECONDS = 60.0
"""A round that comes so late means that the server was not running meanwhile, and could not hear anybody."""

_log = logging.getLogger(__name__)


class Maintenance:
    """Makes its rounds in a thread of its own until it is stopped."""

    def __init__(self, server: ServerState) -> None:
        self._server = server
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="kto-sweep-maintenance", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the round that is going on."""
        self._stopped.set()
        self._thread.join()

    def _work(self) -> None:
        last = time.monotonic()
        while not self._stopped.wait(INTERVAL_SECONDS):
            now = time.monotonic()
            if now - last > SUSPENDED_SECONDS:
                self._server.clock.resumed()
            last = now
            try:
                self._server.database.write(lambda c: run_once(c, self._server))
            except StoreUnavailable as problem:
                _log.warning("%s", problem)


def run_once(connection: sqlite3.Connection, server: ServerState) -> None:
    """Close silent runs and finished sweeps. Silence counts from when the server was last able to hear."""
    now = server.now()
    if server.clock.seconds_since() > RUN_TIMEOUT:
        for run in runs.silent_since(connection, now - RUN_TIMEOUT, now + CLOCK_JUMP_SECONDS):
            runs.update(connection, run.id, state=_state_of_silent(run))
    for sweep in sweeps.open_sweeps(connection):
        sweep_progress.finish_if_done(connection, sweep.id)


def _state_of_silent(run: runs.Run) -> RunState:
    if run.state is RunState.PREEMPTING:
        return successive_halving.state_when_stopped(run) if run.stop_requested else RunState.PREEMPTED
    return successive_halving.state_when_stopped(run) if run.stop_requested else RunState.CRASHED
