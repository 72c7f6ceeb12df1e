"""Fixtures: a server process for the wandb SDK, and a server inside the test process."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_harness import FakeClock, SdkSandbox, ServerHarness

from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server, stop_server
from kto_sweep.server.server_state import ServerClock, ServerState
from kto_sweep.server.store.database import Database
from kto_sweep.server.store.migrations import migrate

KEY = "local-" + "0123456789" * 4


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SdkSandbox]:
    folder = tmp_path_factory.mktemp("sandbox")
    home = Home(folder / "home")
    yield SdkSandbox(home, ensure_server(home), folder)
    stop_server(home)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[ServerHarness]:
    path = tmp_path / "runs.sqlite3"
    migrate(path)
    database, clock = Database(path), FakeClock()
    server_clock = ServerClock(clock, clock.steady)
    server = ServerState(database, tmp_path / "files", KEY, server_clock, random.Random(7))
    yield ServerHarness(server, clock)
    database.close()
