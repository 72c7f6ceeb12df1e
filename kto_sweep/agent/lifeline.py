"""Whether the server answers, asked apart from everything that waits for its answers."""

import threading
import time
import urllib.error
from collections.abc import Callable

from kto_sweep.errors import KtoSweepError
from kto_sweep.http import CONNECTION_ERRORS, opener_for

ROUND_SECONDS = 10.0


class Lifeline:
    """Calls the server every few seconds on a thread of its own.

    `revive` starts a server that is gone, where that is ours to do, and tells its address.
    """

    def __init__(
        self, base_url: str, revive: Callable[[], str] | None, interval: float = ROUND_SECONDS
    ) -> None:
        self.moved_to = ""
        """Where the server is now, when another program has taken its place."""
        self.refused = False
        """It answers, but takes the key no more: those are no answers."""
        self._url = base_url
        self._revive = revive
        self._interval = interval
        self._heard = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True, name="lifeline")

    def start(self) -> None:
        """Begin."""
        self._heard = time.monotonic()
        self._thread.start()

    def end(self) -> None:
        """Call no more."""
        self._ended.set()

    @property
    def silence(self) -> float:
        """Seconds since the last answer."""
        return time.monotonic() - self._heard

    @property
    def trouble(self) -> str:
        """What is the matter while there is silence."""
        return "the server has refused the key" if self.refused else "no answer from the server"

    def _loop(self) -> None:
        while not self._ended.wait(self._interval):
            if self._answers():
                self._heard = self._heard if self.refused else time.monotonic()
            elif self._revive is not None:
                try:
                    found = self._revive()
                except (KtoSweepError, OSError):
                    continue  # the next round tries again
                self.moved_to = found if found != self._url else ""

    def _answers(self) -> bool:
        try:
            opener_for(self._url).open(self._url, timeout=self._interval).close()
        except urllib.error.HTTPError as error:
            return error.code < 500  # any answer of the server itself will do
        except CONNECTION_ERRORS:
            return False
        return True
