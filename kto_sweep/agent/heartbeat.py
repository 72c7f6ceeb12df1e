"""The heartbeats of one slot, an agent of its own to the server: a slow server must not hold up training."""

import threading
import time
from collections.abc import Callable, Sequence

from kto_sweep.backoff import Backoff
from kto_sweep.errors import ServerError
from kto_sweep.wandb_client.private_api import Command

INTERVAL_SECONDS = 5.0
"""wandb's own."""
REGISTRATION = Backoff(first=5.0, factor=2, most=60.0)
"""Between attempts to register."""


class HeartbeatLoop:
    """Asks the server every few seconds what to do, on the thread that `run` is called on.

    `register` returns the id of a new agent; `beat` takes it and the runs that are alive, and returns the
    server's commands. After an answer with commands the loop waits for `resume`: a heartbeat that does not
    name the new run yet would be given another one. After one that took longer than the interval it pauses
    for as long: the server, or wandb's client because of the server's 429, has held it up.

    `register` and `beat` raise ServerError when the server does not take or know the agent. If `is_gone` says
    that this is for good, `on_gone` is called and the loop ends; else it registers again, after a pause that
    grows. Anything else that goes wrong costs one answer. `on_trouble` hears of both, once while it lasts.
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
        self._wake.set()  # the first heartbeat follows the registration at once

    def resume(self, running: Sequence[str], *, soon: bool = False) -> None:
        """Continue, naming these runs as alive; `soon` does not wait for the interval."""
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
                self._report(f"{error.message}; trying again")
                self._ended.wait(REGISTRATION.delay(failures))
            except Exception as error:  # such as an answer that cannot be read
                self._report(f"cannot read the server's answer: {error!r}")
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
