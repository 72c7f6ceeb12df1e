"""A server that does not answer: how that is found out, and when nothing more is started."""

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from stage import wait

from kto_sweep.agent.display import Display
from kto_sweep.agent.lifeline import Lifeline
from kto_sweep.agent.silence import Silence
from kto_sweep.errors import ServerError
from kto_sweep.local_server import start
from kto_sweep.wandb_client.connection import Target, connect, restored_environment

PATIENCE = 100.0


class Watch:
    """A lifeline that hears nothing, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.heard = 0.0
        self.said = io.StringIO()
        display = Display(Console(file=self.said, width=300), (), "eval/common_loss", None)
        self.lifeline: Any = SimpleNamespace(silence=0.0, trouble="no answer from the server")
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


@contextmanager
def program(answer: bytes) -> Iterator[str]:
    """The address of a program that says `answer` to whoever calls."""

    def serve() -> None:
        while True:
            try:
                caller, _ = listening.accept()
            except OSError:
                return
            with caller:
                caller.recv(10_000)
                caller.sendall(answer)

    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


def test_a_server_of_this_box_is_called_without_a_proxy(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with (
        program(b"HTTP/1.0 503 no\r\n\r\n") as proxy,
        program(b"HTTP/1.0 200 yes\r\nContent-Length: 0\r\n\r\n") as here,
    ):
        monkeypatch.setenv("http_proxy", proxy)
        assert Lifeline(here, None)._answers()
        assert Lifeline(here.replace("127.0.0.1", "localhost"), None)._answers()
        assert not Lifeline("http://wandb.example.com", None)._answers()


def test_another_program_on_the_port_is_no_server():
    with program(b"SSH-2.0-OpenSSH_9.6\r\n") as url:
        assert not Lifeline(url, None)._answers()
        assert not start._answers(url, "some home")
        with (
            restored_environment(),
            pytest.raises(ServerError, match=r"no answer from W&B at http.*SSH-2\.0"),
        ):
            connect(Target(url, url, local=False))


@pytest.mark.parametrize("refused", [False, True])
def test_answers_of_a_server_that_refuses_the_key_are_none(refused):
    heard: list[float] = []

    class Answered(Lifeline):
        def _answers(self) -> bool:
            heard.append(self._heard)
            return True

    lifeline = Answered("http://127.0.0.1:9", None, interval=0.01)
    lifeline.refused = refused
    lifeline.start()
    wait(lambda: len(heard) >= 4)
    lifeline.end()
    assert (len(set(heard)) == 1) is refused
