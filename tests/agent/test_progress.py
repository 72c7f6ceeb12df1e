"""The display of an agent on a terminal."""

import io
import re

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
