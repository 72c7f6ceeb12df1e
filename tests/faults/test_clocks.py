"""Clocks that are set while a sweep runs: those of the agent, its workers and its server."""

from pathlib import Path

import pytest
from arena import TWO_BY_TWO, Arena

SHIFTED = """
import datetime, os, time
from pathlib import Path

wall, nanoseconds, real = time.time, time.time_ns, datetime.datetime

def shift():
    return float(Path(os.environ["CLOCK"]).read_text())

class Shifted(real):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)

time.time = lambda: wall() + shift()
time.time_ns = lambda: nanoseconds() + int(shift() * 1e9)
datetime.datetime = Shifted
"""
HOUR = 3600.0


def set_clock(path: Path, seconds: float) -> None:
    new = path.with_name("clock.new")
    new.write_text(str(seconds))
    new.replace(path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_clocks_that_are_set_change_nothing(tmp_path, undisturbed):
    """wandb's service keeps the true time; what is logged there has its times from it."""
    clock = tmp_path / "clock"
    set_clock(clock, 0)
    arena = Arena(tmp_path / "box", TWO_BY_TWO, {"CLOCK": str(clock)}, ("--trials-per-gpu", "2"))
    arena.patch(SHIFTED)
    try:
        arena.create()
        arena.start_agent("--budget", "2h")
        for shift in (HOUR, -HOUR, 24 * HOUR, -24 * HOUR):
            arena.wait_for_progress(8)
            set_clock(clock, shift)
        arena.finish()
        assert len(arena.agents) == 1
        arena.check(undisturbed)
    finally:
        arena.close()
