"""What the tests of faults compare with."""

import pytest
from arena import TWO_BY_TWO, Arena, Losses


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Losses:
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
