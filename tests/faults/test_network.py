"""The network between agent and server fails: training continues, and the server gets the data later."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fake_worker import CLI
from flaky_network import FlakyProxy, NetworkCondition
from machine import KTO_SWEEP
from sweep_harness import TWO_BY_TWO, Losses, SweepHarness, fake_losses, seeded_random

from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server, stop_server


@contextmanager
def remote_server_harness(
    folder: Path, *options: str, cli: tuple[str, ...] = KTO_SWEEP
) -> Iterator[tuple[SweepHarness, FlakyProxy]]:
    """A harness whose server belongs to another machine and is reached through a flaky network, like W&B."""
    server = Home(folder / "server-home")
    address = ensure_server(server)
    proxy = FlakyProxy(urlsplit(address.url).port or 0)
    environ = {"WANDB_BASE_URL": proxy.url, "WANDB_API_KEY": address.key}
    harness = SweepHarness(
        folder / "machine", TWO_BY_TWO, cli=cli, environ=environ, options=options, server=server
    )
    try:
        yield harness, proxy
    finally:
        proxy.set_condition(NetworkCondition.NORMAL)
        harness.close()
        proxy.close()
        stop_server(server)


def test_a_sweep_survives_a_network_failure(tmp_path):
    rng = seeded_random()
    with remote_server_harness(tmp_path, "--trials-per-gpu", "4", cli=CLI) as (harness, proxy):
        harness.create()
        harness.start_agent()
        harness.wait_for_progress(rng.randint(2, 30))
        proxy.set_condition(NetworkCondition.REFUSED)
        harness.wait_for_progress(rng.randint(2, 30))
        proxy.set_condition(NetworkCondition.NORMAL)
        harness.finish()
        harness.check(fake_losses(TWO_BY_TWO))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sweep_survives_every_network_condition(tmp_path, baseline: Losses):
    rng = seeded_random()
    with remote_server_harness(tmp_path, "--trials-per-gpu", "2") as (harness, proxy):
        harness.create()
        harness.start_agent()
        for condition in (*NetworkCondition, *reversed(NetworkCondition)):
            # A trial that waits for the server to accept its end makes no progress.
            with suppress(AssertionError):
                harness.wait_for_progress(rng.randint(2, 12), 20)
            print(f"after {harness.steps()} steps: {condition}", flush=True)
            proxy.set_condition(condition)
        proxy.set_condition(NetworkCondition.NORMAL)
        harness.finish(600)
        harness.check(baseline)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_agent_whose_server_is_gone_for_good_ends_its_trials_and_says_what_to_type(tmp_path, baseline):
    with remote_server_harness(tmp_path, "--trials-per-gpu", "2", "--patience", "15") as (harness, proxy):
        harness.create()
        agent = harness.start_agent()
        harness.wait_for_progress(2)
        proxy.set_condition(NetworkCondition.REFUSED)
        assert agent.wait(300) == 1, harness.output()
        assert "not starting new trials" in harness.output()
        assert "kto-sweep sync" in harness.output()
        assert len(list(harness.home.runs.glob("*/adapter"))) == 2, "the trials came to their end"
        proxy.set_condition(NetworkCondition.NORMAL)
        harness.start_agent()
        harness.finish()
        harness.check(baseline)
