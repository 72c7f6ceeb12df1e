"""What the tests of faults compare with."""

from pathlib import Path

import pytest
from arena import TWO_BY_TWO, Arena, Losses


@pytest.fixture(scope="session", autouse=True)
def base_model(tiny_base: Path) -> None:
    Arena.base_model = tiny_base


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, base_model: None) -> Losses:
    """The losses of the grid without any accident."""
    arena = Arena(tmp_path_factory.mktemp("undisturbed"), TWO_BY_TWO)
    try:
        arena.create()
        arena.start_agent("--trials-per-gpu", "4")
        arena.finish()
        losses = arena.losses()
        arena.check(losses)
    finally:
        arena.close()
    return losses
