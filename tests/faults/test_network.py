"""The network between agent and server fails: training goes on, and the server hears of it later."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from arena import TWO_BY_TWO, Arena, Losses, seeded
from weather import Proxy, Weather

from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server, stop_server


@contextmanager
def far_arena(folder: Path, *options: str) -> Iterator[tuple[Arena, Proxy]]:
    """A box whose server is another box's, behind a network, as W&B is."""
    server = Home(folder / "server-home")
    address = ensure_server(server)
    proxy = Proxy(urlsplit(address.url).port or 0)
    environ = {"WANDB_BASE_URL": proxy.url, "WANDB_API_KEY": address.key}
    arena = Arena(folder / "box", TWO_BY_TWO, environ, options, server=server)
    try:
        yield arena, proxy
    finally:
        proxy.turn(Weather.FINE)
        arena.close()
        proxy.close()
        stop_server(server)


def test_a_sweep_outlives_a_network_that_is_gone_for_a_while(tmp_path, undisturbed: Losses):
    rng = seeded()
    with far_arena(tmp_path, "--trials-per-gpu", "4") as (arena, proxy):
        arena.create()
        arena.start_agent()
        arena.wait_for_progress(rng.randint(2, 30))
        proxy.turn(Weather.REFUSED)
        arena.wait_for_progress(rng.randint(2, 30))
        proxy.turn(Weather.FINE)
        arena.finish()
        arena.check(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sweep_outlives_every_weather(tmp_path, undisturbed: Losses):
    rng = seeded()
    with far_arena(tmp_path, "--trials-per-gpu", "2") as (arena, proxy):
        arena.create()
        arena.start_agent()
        for weather in (*Weather, *reversed(Weather)):
            with suppress(AssertionError):  # trials whose end waits for the server make no progress
                arena.wait_for_progress(rng.randint(2, 12), 20)
            print(f"after {arena.steps()} steps: {weather}", flush=True)
            proxy.turn(weather)
        proxy.turn(Weather.FINE)
        arena.finish(600)
        arena.check(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_agent_whose_server_is_gone_for_good_ends_its_trials_and_says_what_to_type(tmp_path, undisturbed):
    with far_arena(tmp_path, "--trials-per-gpu", "2", "--patience", "15") as (arena, proxy):
        arena.create()
        agent = arena.start_agent()
        arena.wait_for_progress(2)
        proxy.turn(Weather.REFUSED)
        assert agent.wait(300) == 1, arena.said()
        assert "starting no more trials" in arena.said()
        assert "kto-sweep sync" in arena.said()
        assert len(list(arena.home.runs.glob("*/adapter"))) == 2, "the trials came to their end"
        proxy.turn(Weather.FINE)
        arena.start_agent()
        arena.finish()
        arena.check(undisturbed)
