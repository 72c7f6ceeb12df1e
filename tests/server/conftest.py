"""Fixtures: a server process for the wandb SDK, and a server inside the test process."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine
from sdk_scripts import SETTINGS
from server_harness import FakeClock, ServerHarness

from kto_sweep.server.server_state import ServerClock, ServerState
from kto_sweep.server.store.database import Database
from kto_sweep.server.store.migrations import migrate

KEY = "local-" + "0123456789" * 4


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine whose commands and scripts use its embedded server as their W&B server."""
    machine = Machine(tmp_path_factory.mktemp("machine"))
    address = machine.address
    machine.environ |= SETTINGS | {
        "WANDB_BASE_URL": address.url,
        "WANDB_API_KEY": address.key,
        "WANDB_DIR": str(machine.folder),
    }
    yield machine
    machine.close()


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[ServerHarness]:
    path = tmp_path / "runs.sqlite3"
    migrate(path)
    database, clock = Database(path), FakeClock()
    server_clock = ServerClock(clock, clock.steady)
    server = ServerState(database, tmp_path / "files", KEY, server_clock, random.Random(7))
    yield ServerHarness(server, clock)
    database.close()
