"""The machine of each test in this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine for one test, without a base model: nothing is trained."""
    machine = Machine(tmp_path)
    yield machine
    machine.close()
