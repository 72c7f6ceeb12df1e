"""The heartbeats of one slot, on their own thread so that a slow server does not hold up training."""

import threading
import time
from collections.abc import Callable, Sequence

from kto_sweep.backoff import Backoff
from kto_sweep.errors import ServerError
from kto_sweep.wandb_client.private_api import Command

INTERVAL_SECONDS = 5.0
"""The interval of wandb's own agent."""
REGISTRATION = Backoff(first=5.0, factor=2, most=60.0)
"""Delays between attempts to register."""


class HeartbeatLoop:
    """Sends a heartbeat to the server every few seconds, on the thread that calls `run`.

    `register` returns the id of a new agent; `beat` takes this id and the live runs, and returns the server's
    commands. After a response with commands the loop waits for `resume`, because the server would answer a
    heartbeat without the new run with yet another run. After a heartbeat that took longer than the interval,
    the loop pauses for the same time again, because the server is overloaded or sent a 429.

    `register` and `beat` raise ServerError when the server rejects or does not know the agent. If `is_gone`
    confirms that this is permanent, the loop calls `on_gone` and ends; otherwise it registers again after a
    growing delay. Any other error loses one response. `on_trouble` receives each error once while it lasts.
    """

    def __init__(
        self,
        register: Callable[[], str],
        beat: Callable[[str, Sequence[str]], list[Command]],
        on_commands: Callable[[list[Command]], None],
        on_gone: Callable[[ServerError], None],
        is_gone: Callable[[], bool],
        on_trouble: Callable[[str], None],
        interval: float = INTERVAL_SECONDS,
    ) -> None:
        self._register = register
        self._beat = beat
        self._on_commands = on_commands
        self._on_gone = on_gone
        self._is_gone = is_gone
        self._on_trouble = on_trouble
        self._trouble = ""
        self._interval = interval
        self._running: tuple[str, ...] = ()
        self._wake = threading.Event()
        self._resumed = threading.Event()
        self._ended = threading.Event()
        self._wake.set()  # send the first heartbeat directly after the registration

    def resume(self, running: Sequence[str], *, soon: bool = False) -> None:
        """Continue and report these runs as alive; `soon`: without waiting for the interval."""
        self._running = tuple(running)
        self._resumed.set()
        if soon:
            self._wake.set()

    def end(self) -> None:
        """Stop."""
        self._ended.set()
        self._resumed.set()
        self._wake.set()

    def run(self) -> None:
        """Send heartbeats until `end`."""
        agent_id, failures = "", 0
        while not self._ended.is_set():
            if agent_id:
                self._wake.wait(self._interval)
                self._wake.clear()
                if self._ended.is_set():
                    return
            self._resumed.clear()
            began = time.monotonic()
            commands: list[Command] = []
            try:
                if not agent_id:
                    agent_id = self._register()
                    continue
                commands = self._beat(agent_id, self._running)
                failures, self._trouble = 0, ""
            except ServerError as error:
                if self._is_gone():
                    self._on_gone(error)
                    return
                agent_id, failures = "", failures + 1
                self._report(f"{error.message}; retrying")
                self._ended.wait(REGISTRATION.delay(failures))
            except Exception as error:  # such as a malformed response
                self._report(f"could not read the server's response: {error!r}")
            seconds = time.monotonic() - began
            if commands:
                self._on_commands(commands)
                self._resumed.wait()
            if seconds > self._interval:
                self._ended.wait(seconds)

    def _report(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._on_trouble(trouble)
