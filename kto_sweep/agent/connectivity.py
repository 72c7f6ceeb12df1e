"""Checks whether the server responds, independently of all requests that wait for its responses."""

import threading
import time
from collections.abc import Callable

from kto_sweep.agent.events import Tick
from kto_sweep.agent.transition import Transition
from kto_sweep.errors import KtoSweepError
from kto_sweep.http import NoAnswerError, get

PROBE_SECONDS = 10.0
WARN_SECONDS = 45.0
"""A server that does not respond for this long is reported."""


class Connectivity:
    """Probes the server every few seconds, on the thread that calls `run`.

    `revive` restarts the embedded server if it has exited, and returns its URL; None for other servers.
    """

    def __init__(
        self, base_url: str, revive: Callable[[], str] | None, interval: float = PROBE_SECONDS
    ) -> None:
        self.moved_to = ""
        """The server's new URL, if another program has taken its port."""
        self.key_rejected = False
        """The server responds but rejects the key, which counts as silence."""
        self._url = base_url
        self._revive = revive
        self._interval = interval
        self._answered_at = time.monotonic()
        self._ended = threading.Event()

    def end(self) -> None:
        """Stop probing."""
        self._ended.set()

    @property
    def silence(self) -> float:
        """Seconds since the last response."""
        return time.monotonic() - self._answered_at

    @property
    def trouble(self) -> str:
        """What is wrong while the server is silent."""
        return "The server rejects the key" if self.key_rejected else "No response from the server"

    def run(self) -> None:
        """Probe until `end`."""
        self._answered_at = time.monotonic()
        while not self._ended.wait(self._interval):
            if self._answers():
                self._answered_at = self._answered_at if self.key_rejected else time.monotonic()
            elif self._revive is not None:
                try:
                    url = self._revive()
                except (KtoSweepError, OSError):
                    continue  # the next probe tries again
                self.moved_to = url if url != self._url else ""

    def _answers(self) -> bool:
        try:
            # Any response of the server itself counts.
            return get(self._url, timeout=self._interval).status < 500
        except NoAnswerError:
            return False


def is_lost(t: Transition, tick: Tick, elapsed: float) -> bool:
    """True once, when the server has been silent for longer than --patience. Pure.

    `elapsed`: seconds since the last tick, capped. The measured silence may include time in which this
    process was suspended and did not probe.
    """
    state = t.state
    silence = min(state.server_silence + elapsed, tick.server_silence)
    t.update(server_silence=silence)
    lost = state.stats.server_lost
    if silence > WARN_SECONDS and not state.server_warned and not lost:
        t.update(server_warned=True)
        t.say(f"{tick.server_trouble} for {silence:.0f} s: training continues, metrics are sent later")
    elif silence < WARN_SECONDS and state.server_warned:
        t.update(server_warned=False)
        t.say("The server responds again")
    if silence <= state.settings.patience or lost:
        return False
    t.say(f"{tick.server_trouble} for {silence:.0f} s: not starting new trials")
    return True
