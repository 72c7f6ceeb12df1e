"""A server that does not answer: how that is found out, and when nothing more is started."""

import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from kto_sweep.agent.display import Display
from kto_sweep.agent.silence import Silence

PATIENCE = 100.0


class Watch:
    """A lifeline that hears nothing, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.heard = 0.0
        self.said = io.StringIO()
        display = Display(Console(file=self.said, width=300), (), "eval/common_loss", None)
        self.lifeline: Any = SimpleNamespace(silence=0.0)
        self.silence = Silence(self.lifeline, display, PATIENCE, lambda: self.now)

    def look(self, *, after: float) -> bool:
        self.now += after
        self.lifeline.silence = self.now - self.heard
        return self.silence.is_too_long()


def test_a_silent_server_is_spoken_of_and_in_the_end_nothing_more_is_started_once():
    watch = Watch()
    assert not any(watch.look(after=1) for _ in range(int(PATIENCE)))
    assert "no answer from the server for 46 s" in watch.said.getvalue()
    assert [watch.look(after=1) for _ in range(3)] == [True, False, False]


def test_time_in_which_the_agent_stood_still_is_no_silence_of_the_server():
    watch = Watch()
    watch.look(after=1)
    assert not watch.look(after=10 * PATIENCE)
    assert not watch.said.getvalue()
    watch.heard = watch.now
    assert not any(watch.look(after=1) for _ in range(int(PATIENCE)))
    assert watch.look(after=1)
