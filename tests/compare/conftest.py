"""A real server with a seeded sweep, and a machine that uses it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine

sys.path.append(str(Path(__file__).parents[1] / "browser"))

from seeds import SeededServer

from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server, stop_server


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeededServer]:
    home = Home(tmp_path_factory.mktemp("server") / "home")
    server = SeededServer(ensure_server(home))
    yield server
    server.close()
    stop_server(home)


@pytest.fixture
def machine(seeded: SeededServer, tmp_path: Path) -> Machine:
    """A machine that uses the seeded server as W&B, without running it."""
    environ = {
        "WANDB_BASE_URL": seeded.url,
        "WANDB_API_KEY": seeded.address.key,
        "WANDB_ERROR_REPORTING": "false",
        "PYTHONIOENCODING": "utf-8",
    }
    return Machine(tmp_path, environ=environ)
