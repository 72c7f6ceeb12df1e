"""A machine with a home and an embedded server for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_trials import Machine

from kto_sweep.local_server.start import stop_server


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    stop_server(machine.home)
