"""A server that does not answer is spoken of; in the end nothing more is started."""

import time
from collections.abc import Callable

from kto_sweep.agent.display import Display
from kto_sweep.agent.lifeline import Lifeline
from kto_sweep.agent.looks import Looks

SILENCE_SECONDS = 45.0
"""A server that does not answer for so long is spoken of."""


class Silence:
    """Watches over the lifeline."""

    def __init__(
        self,
        lifeline: Lifeline,
        display: Display,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`patience`: seconds of silence after which nothing more is started."""
        self._lifeline = lifeline
        self._display = display
        self._patience = patience
        self._looks = Looks(clock)
        self._silence = 0.0
        self._spoken_of = False
        self._ended = False

    def is_too_long(self) -> bool:
        """True once, when the server's silence has lasted too long."""
        # What the lifeline calls silence may be time in which this process stood still and asked nothing.
        silence = self._silence = min(self._silence + self._looks.since(), self._lifeline.silence)
        if silence > SILENCE_SECONDS and not self._spoken_of and not self._ended:
            self._spoken_of = True
            self._display.say(
                f"{self._lifeline.trouble} for {silence:.0f} s: training goes on, what it logs is sent later"
            )
        elif silence < SILENCE_SECONDS and self._spoken_of:
            self._spoken_of = False
            self._display.say("the server answers again")
        if silence <= self._patience or self._ended:
            return False
        self._ended = True
        self._display.say(f"{self._lifeline.trouble} for {silence:.0f} s: no more trials are started")
        return True
