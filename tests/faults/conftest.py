"""The losses without faults, with which the tests compare."""

from pathlib import Path

import pytest
from sweep_harness import TWO_BY_TWO, Losses, SweepHarness


@pytest.fixture(scope="session", autouse=True)
def base_model(tiny_base: Path) -> None:
    SweepHarness.base_model = tiny_base


@pytest.fixture(scope="session")
def baseline(tmp_path_factory: pytest.TempPathFactory, base_model: None) -> Losses:
    """The losses of the grid without faults."""
    harness = SweepHarness(tmp_path_factory.mktemp("baseline"), TWO_BY_TWO)
    try:
        harness.create()
        harness.start_agent("--trials-per-gpu", "4")
        harness.finish()
        losses = harness.losses()
        harness.check(losses)
    finally:
        harness.close()
    return losses
