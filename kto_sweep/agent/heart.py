"""The heartbeat of one registered agent, on a thread of its own: a slow server must not hold up training."""

import threading
import time
from collections.abc import Callable, Sequence

from kto_sweep.agent.link import Command
from kto_sweep.errors import ServerError

BEAT_SECONDS = 5.0
"""wandb's own interval."""


class Heart:
    """Asks the server every few seconds what is to be done, and hands over each answer.

    `register` gives the id of a new agent; `beat` is told it and the runs that are alive, and gives the
    server's commands. After an answer with
    commands the heart stands still until `resume`: a heartbeat that does not name the new run yet would be
    given another. After one that took longer than the interval it rests for as long: the server, or wandb's
    client as the server's 429 told it, has held it up, and nothing is `soon` then.
    """

    def __init__(
        self,
        register: Callable[[], str],
        beat: Callable[[str, Sequence[str]], list[Command]],
        on_commands: Callable[[list[Command]], None],
        on_loss: Callable[[ServerError], None],
        interval: float = BEAT_SECONDS,
    ) -> None:
        self._register = register
        self._beat = beat
        self._on_commands = on_commands
        self._on_loss = on_loss
        self._interval = interval
        self._running: tuple[str, ...] = ()
        self._wake = threading.Event()
        self._handled = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True, name="heartbeat")

    def start(self, running: Sequence[str] = ()) -> None:
        """Begin, with a first heartbeat at once, naming these runs as alive."""
        self._running = tuple(running)
        self._wake.set()
        self._thread.start()

    def resume(self, running: Sequence[str], *, soon: bool = False) -> None:
        """Go on, naming these runs as alive; `soon` asks without waiting for the interval."""
        self._running = tuple(running)
        self._handled.set()
        if soon:
            self._wake.set()

    def end(self) -> None:
        """Beat no more."""
        self._ended.set()
        self._handled.set()
        self._wake.set()

    def _loop(self) -> None:
        try:
            agent_id = self._register()
        except ServerError as error:
            self._on_loss(error)
            return
        while not self._ended.is_set():
            self._wake.wait(self._interval)
            self._wake.clear()
            if self._ended.is_set():
                return
            self._handled.clear()
            began = time.monotonic()
            try:
                commands = self._beat(agent_id, self._running)
            except ServerError as error:
                self._on_loss(error)
                return
            taken = time.monotonic() - began
            if commands:
                self._on_commands(commands)
                self._handled.wait()
            if taken > self._interval:
                self._ended.wait(taken)
