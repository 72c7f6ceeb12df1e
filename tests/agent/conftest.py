"""The stage that each test has."""

from pathlib import Path

import pytest
import stage as stages

from kto_sweep.home import Home


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> stages.Stage:
    return stages.set_up(Home(tmp_path / "home"), monkeypatch)
