"""The box that each test module has to itself, and the stage that each test has."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import stage as stages
from agent_box import ROOT, Box

from kto_sweep.home import Home
from kto_sweep.local_server.start import stop_server


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"))
    (box.folder / "agent.py").symlink_to(ROOT / "agent.py")
    shutil.copytree(tiny_base, box.home.models / tiny_base.name)
    yield box
    stop_server(box.home)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> stages.Stage:
    return stages.set_up(Home(tmp_path / "home"), monkeypatch)
