"""Periodic maintenance: silent runs, sweeps to finish, unused artifacts, a suspended machine."""

import logging
import sqlite3
import threading
import time

from kto_sweep.server import artifact_cleanup, successive_halving, sweep_progress
from kto_sweep.server.server_state import CLOCK_JUMP_SECONDS, ServerState
from kto_sweep.server.states import RunState
from kto_sweep.server.store import runs, sweeps
from kto_sweep.server.store.database import StoreUnavailable

RUN_TIMEOUT = 300.0
"""Seconds without a heartbeat after which a run counts as crashed. wandb sends one every 30 s, and backs off
for a minute or more after it lost the server."""
INTERVAL_SECONDS = 15.0
"""Seconds between two rounds."""
CLEANUP_SECONDS = 300.0
"""Seconds between two cleanups of artifacts, which look at every file."""
SUSPENDED_SECONDS = 60.0
"""A round this late means that the machine was suspended and the server could not receive heartbeats."""

_log = logging.getLogger(__name__)


class MaintenanceThread:
    """Runs `run_once` every `INTERVAL_SECONDS`, and the cleanup of artifacts, until stopped."""

    def __init__(self, server: ServerState) -> None:
        self._server = server
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="kto-sweep-maintenance", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread after the current round."""
        self._stopped.set()
        self._thread.join()

    def _loop(self) -> None:
        last = cleanup_at = time.monotonic()
        while not self._stopped.wait(INTERVAL_SECONDS):
            now = time.monotonic()
            if now - last > SUSPENDED_SECONDS:
                self._server.clock.resumed()
            last = now
            try:
                self._server.database.write(lambda c: run_once(c, self._server))
                if now >= cleanup_at:
                    cleanup_at = now + CLEANUP_SECONDS
                    artifact_cleanup.run_once(self._server)
            except (StoreUnavailable, OSError) as problem:
                _log.warning("%s", problem)


def run_once(connection: sqlite3.Connection, server: ServerState) -> None:
    """Marks silent runs as crashed and finishes sweeps. Silence counts while the server could receive."""
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
