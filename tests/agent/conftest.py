"""The box that each test module has to itself."""

from collections.abc import Iterator

import pytest
from agent_box import ROOT, Box

from kto_sweep.server.launch import stop_server


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"))
    (box.folder / "agent.py").symlink_to(ROOT / "agent.py")
    yield box
    stop_server(box.home)
