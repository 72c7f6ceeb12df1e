"""The heartbeat of one registered agent, on a thread of its own: a slow server must not hold up training."""

import threading
import time
from collections.abc import Callable, Sequence

from kto_sweep.errors import ServerError
from kto_sweep.wandb_client.private_api import Command

BEAT_SECONDS = 5.0
"""wandb's own interval."""
MOST_SECONDS = 60.0
"""Between two attempts to register."""


class Heart:
    """Asks the server every few seconds what is to be done, and hands over each answer.

    `register` gives the id of a new agent; `beat` is told it and the runs that are alive, and gives the
    server's commands. After an answer with
    commands the heart stands still until `resume`: a heartbeat that does not name the new run yet would be
    given another. After one that took longer than the interval it rests for as long: the server, or wandb's
    client as the server's 429 told it, has held it up, and nothing is `soon` then.

    `register` and `beat` raise ServerError when the server does not take or know the agent. If `is_lost` says
    that this is for good, that is the end of the heart; else it registers anew, after a pause, which becomes
    longer. What else goes wrong is one answer lost. `on_trouble` is told of both, once while it is the same.
    """

    def __init__(
        self,
        register: Callable[[], str],
        beat: Callable[[str, Sequence[str]], list[Command]],
        on_commands: Callable[[list[Command]], None],
        on_loss: Callable[[ServerError], None],
        is_lost: Callable[[], bool],
        on_trouble: Callable[[str], None],
        interval: float = BEAT_SECONDS,
    ) -> None:
        self._register = register
        self._beat = beat
        self._on_commands = on_commands
        self._on_loss = on_loss
        self._is_lost = is_lost
        self._on_trouble = on_trouble
        self._told = ""
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
        agent_id, pause = "", self._interval
        while not self._ended.is_set():
            if agent_id:
                self._wake.wait(self._interval)
                self._wake.clear()
                if self._ended.is_set():
                    return
            self._handled.clear()
            began = time.monotonic()
            commands: list[Command] = []
            try:
                if not agent_id:
                    agent_id = self._register()
                    continue
                commands = self._beat(agent_id, self._running)
                pause, self._told = self._interval, ""
            except ServerError as error:
                if self._is_lost():
                    self._on_loss(error)
                    return
                agent_id = ""
                self._tell(f"{error.message}; it is asked again")
                self._ended.wait(pause)
                pause = min(2 * pause, MOST_SECONDS)
            except Exception as error:  # such as an answer that cannot be read
                self._tell(f"an answer of the server was not understood: {error!r}")
            taken = time.monotonic() - began
            if commands:
                self._on_commands(commands)
                self._handled.wait()
            if taken > self._interval:
                self._ended.wait(taken)

    def _tell(self, trouble: str) -> None:
        if trouble != self._told:
            self._told = trouble
            self._on_trouble(trouble)
