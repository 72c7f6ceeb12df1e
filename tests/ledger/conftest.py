"""The boxes of the tests in this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_box import Box

from kto_sweep.local_server.start import stop_server


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    stop_server(box.home)
