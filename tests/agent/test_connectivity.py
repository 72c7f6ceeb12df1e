"""A server that does not respond: how the agent detects it, and when it stops starting trials."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from agent_harness import wait
from agent_world import lines, play, running

from kto_sweep.agent import events
from kto_sweep.agent.connectivity import Connectivity
from kto_sweep.agent.scheduler import MAX_TICK_SECONDS
from kto_sweep.errors import ServerError
from kto_sweep.local_server import start
from kto_sweep.wandb_client.connection import Target, connect, restored_environment

PATIENCE = 100.0


def test_a_silent_server_is_reported_and_finally_no_trials_start() -> None:
    state, said = running("a", patience=PATIENCE), []
    state, _ = play(state, events.Tick())
    for second in range(1, int(PATIENCE) + 10):
        tick = events.Tick(server_silence=float(second), server_trouble="No response from the server")
        state, actions = play(state, tick, now=float(second))
        said += lines(actions)
    assert said == [
        "No response from the server for 46 s: training continues, metrics are sent later",
        "No response from the server for 101 s: not starting new trials",
    ]
    assert (state.stats.server_lost, state.is_draining) == (True, True)


def test_time_in_which_the_agent_was_suspended_is_not_server_silence() -> None:
    state, _ = play(running("a", patience=PATIENCE), events.Tick(), now=1.0)
    now = 10 * PATIENCE
    state, actions = play(state, events.Tick(server_silence=now, server_trouble="No response"), now=now)
    assert not lines(actions)
    assert state.server_silence == MAX_TICK_SECONDS


def test_a_server_that_responds_again_is_reported() -> None:
    state, _ = play(running("a"), events.Tick())
    for second in range(1, 60):
        state, _ = play(
            state, events.Tick(server_silence=float(second), server_trouble="No response"), now=second
        )
    _, actions = play(state, events.Tick(server_silence=1.0), now=61.0)
    assert lines(actions) == ["The server responds again"]


@contextmanager
def program(answer: bytes) -> Iterator[str]:
    """The URL of a program that answers every connection with `answer`."""

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


def test_a_server_on_this_box_is_probed_without_a_proxy(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with (
        program(b"HTTP/1.0 503 no\r\n\r\n") as proxy,
        program(b"HTTP/1.0 200 yes\r\nContent-Length: 0\r\n\r\n") as here,
    ):
        monkeypatch.setenv("http_proxy", proxy)
        assert Connectivity(here, None)._answers()
        assert Connectivity(here.replace("127.0.0.1", "localhost"), None)._answers()
        assert not Connectivity("http://wandb.example.com", None)._answers()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "Server disconnected"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", r"illegal status line.*SSH-2\.0"),
    ],
)
def test_another_program_on_the_port_is_not_the_server(line, reason):
    with program(line) as url:
        assert not Connectivity(url, None)._answers()
        assert not start._answers(url, "some home")
        with (
            restored_environment(),
            pytest.raises(ServerError, match=f"could not reach W&B at http.*{reason}"),
        ):
            connect(Target(url, url, local=False))


@pytest.mark.parametrize("refused", [False, True])
def test_responses_of_a_server_that_rejects_the_key_do_not_count(refused):
    answered: list[float] = []

    class Answered(Connectivity):
        def _answers(self) -> bool:
            answered.append(self._answered_at)
            return True

    connectivity = Answered("http://127.0.0.1:9", None, interval=0.01)
    connectivity.key_rejected = refused
    threading.Thread(target=connectivity.run, daemon=True).start()
    wait(lambda: len(answered) >= 4)
    connectivity.end()
    assert (len(set(answered)) == 1) is refused
