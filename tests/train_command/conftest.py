"""The box that each test module has to itself."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from train_box import Box

from kto_sweep.local_server.start import stop_server


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"))
    shutil.copytree(tiny_base, box.home.models / tiny_base.name)
    yield box
    stop_server(box.home)
