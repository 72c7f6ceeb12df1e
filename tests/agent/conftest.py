"""The agent with fakes that each test uses."""

from pathlib import Path

import pytest
from agent_harness import AgentHarness

from kto_sweep.agent import heartbeat, trial_lifecycle
from kto_sweep.backoff import Backoff
from kto_sweep.home import Home


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AgentHarness:
    home = Home(tmp_path / "home")
    home.runs.mkdir(parents=True)
    monkeypatch.setattr(trial_lifecycle, "OPENING", Backoff(0.05, 1, 0.05))
    monkeypatch.setattr(heartbeat, "REGISTRATION", Backoff(0.01, 2, 0.05))
    monkeypatch.setattr(trial_lifecycle, "SPACE_SECONDS", 0.02)
    return AgentHarness(home)
