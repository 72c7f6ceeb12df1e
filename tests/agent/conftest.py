"""The agent among stand-ins that each test has."""

from pathlib import Path

import pytest
from agent_harness import AgentHarness

from kto_sweep.agent import trial_lifecycle
from kto_sweep.home import Home


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AgentHarness:
    home = Home(tmp_path / "home")
    home.runs.mkdir(parents=True)
    monkeypatch.setattr(trial_lifecycle, "OPENING_SECONDS", (0.05,))
    monkeypatch.setattr(trial_lifecycle, "SPACE_SECONDS", 0.02)
    return AgentHarness(home)
