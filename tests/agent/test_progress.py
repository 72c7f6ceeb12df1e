"""The display of an agent on a terminal."""

import io
import math
import re

import pytest
from rich.console import Console

from kto_sweep.agent.progress import ProgressDisplay


def test_a_trial_has_a_bar_from_start_to_end():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)

    def shown() -> str:
        """The output since the last call."""
        display._progress.refresh()
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
        screen.truncate(0)
        return text

    with ProgressDisplay(console, ("seed", "dataset"), "eval/common_loss", 4) as display:
        display.started("run1", "calm-wave-1", {"seed": 3, "dataset": ["a", "b"]}, "gpu 0")
        assert "trial 1 of 4 on gpu 0: seed=3  dataset=[a, b]" in shown(), (
            "before its number of steps is known"
        )
        display.preparing("run1", "loading x", 0, 1)
        assert "  trial 1: loading x\n" in shown()
        display.preparing("run1", "loading x", 1, 1)
        assert "  trial 1: loading x: done in 0 s\n" in shown()
        display.preparing("run1", "reference", 3, 9)
        assert re.search(r"3/9 +reference", shown())
        display.planned("run1", 40, 10)
        display.progress("run1", 20, {"loss": 0.25})
        assert re.search(r"20/40 +loss 0.25", shown())
        display.ended("run1", "finished", {"eval/common_loss": 0.125})
    assert "trial 1 finished   eval/common_loss 0.125" in shown()


@pytest.mark.parametrize("value", [-1.234e-300, 3.4028234e38, -1.0e9, 10**30, math.inf, math.nan])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_bar_with_numbers_of_any_size_stays_on_one_line(width, value):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, color_system=None)
    with ProgressDisplay(console, (), "eval/common_loss", None) as display:
        display.started("run1", "calm-wave-1", {}, "cpu")
        display.planned("run1", 40, 0)
        screen.truncate(0)
        display.progress("run1", 20, dict.fromkeys(("loss", "rewards/margins", "gpu/memory_peak_gb"), value))
        display._progress.refresh()
        lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", screen.getvalue()).strip("\0\r\n").split("\n")
    bars = [line.split("\r")[-1] for line in lines]
    assert len(bars) == 1
    assert "20/40" in bars[0]
    assert width < 80 or "loss" in bars[0]
    assert len(bars[0]) <= width


def test_an_unstable_trial_is_shown_as_such():
    screen = io.StringIO()
    with ProgressDisplay(Console(file=screen, width=200), (), "eval/common_loss", 4) as display:
        display.started("run1", "calm-wave-1", {}, "cpu")
        display.ended("run1", "finished", {"eval/common_loss": 0.50001, "trial/health": "unstable"})
    assert screen.getvalue().splitlines()[-1] == "  trial 1 finished, unstable   eval/common_loss 0.5"
