"""The server of the tests in this folder: a process of its own, or its insides in this process."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_bench import Bench, Box, Clock

from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server, stop_server
from kto_sweep.server.backend import Backend, Uptime
from kto_sweep.server.store.database import Database
from kto_sweep.server.store.migrations import migrate

KEY = "local-" + "0123456789" * 4


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("box")
    home = Home(folder / "home")
    yield Box(home, ensure_server(home), folder)
    stop_server(home)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    path = tmp_path / "runs.sqlite3"
    migrate(path)
    database, clock = Database(path), Clock()
    uptime = Uptime(clock, clock.steady)
    backend = Backend(database, tmp_path / "files", KEY, uptime, random.Random(7))
    yield Bench(backend, clock)
    database.close()
