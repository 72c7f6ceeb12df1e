"""The box that each test module has to itself, and the agent among stand-ins that each test has."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_box import ROOT, Box
from agent_harness import AgentHarness

from kto_sweep.agent import trial_lifecycle
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
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AgentHarness:
    home = Home(tmp_path / "home")
    home.runs.mkdir(parents=True)
    monkeypatch.setattr(trial_lifecycle, "OPENING_SECONDS", (0.05,))
    monkeypatch.setattr(trial_lifecycle, "SPACE_SECONDS", 0.02)
    return AgentHarness(home)
