"""A machine for each test module."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from train_machine import Machine

from kto_sweep.local_server.start import stop_server


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    shutil.copytree(tiny_base, machine.home.models / tiny_base.name)
    yield machine
    stop_server(machine.home)
