"""The clocks of an agent, its workers and its server are set while a sweep runs."""

from pathlib import Path

import pytest
from machine import KTO_SWEEP
from sweep_harness import TWO_BY_TWO, SweepHarness

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
def test_clocks_that_are_set_change_nothing(tmp_path, baseline):
    """wandb-core keeps the true time: it is no Python process, and it sets the times of logged rows."""
    clock = tmp_path / "clock"
    set_clock(clock, 0)
    harness = SweepHarness(
        tmp_path / "machine",
        TWO_BY_TWO,
        cli=KTO_SWEEP,
        environ={"CLOCK": str(clock)},
        options=("--trials-per-gpu", "2"),
    )
    harness.patch(SHIFTED)
    try:
        harness.create()
        harness.start_agent("--budget", "2h")
        for shift in (HOUR, -HOUR, 24 * HOUR, -24 * HOUR):
            harness.wait_for_progress(8)
            set_clock(clock, shift)
        harness.finish()
        assert len(harness.agents) == 1
        harness.check(baseline)
    finally:
        harness.close()
