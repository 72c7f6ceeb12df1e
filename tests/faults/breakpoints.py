"""Breakpoints in the processes of a SweepHarness: each holds a process at an exact phase of its work."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # agents and workers import this module too, and do without the tests' other modules
    from sweep_harness import SweepHarness

FOLDER = "BREAKPOINTS"
"""Environment variable with the folder of the breakpoints: one file per held phase."""
LONGEST_SECONDS = 60.0
SITE = "import breakpoints\nbreakpoints.install()\n"
"""The sitecustomize module of the harness's processes."""


def install() -> None:
    """Add the breakpoints to this process, if it is a worker or an agent."""
    import sys

    if "kto_sweep.train.worker" in sys.orig_argv:
        from kto_sweep.train import context
        from kto_sweep.train.reference_rows import ReferenceLogProbs
        from kto_sweep.train.trial import adapters
        from kto_sweep.train.trial.training import TrialTraining

        _break_before(context, "load_base", "load")
        _break_before(ReferenceLogProbs, "fill", "reference")
        _break_before(TrialTraining, "evaluation", "evaluation")
        _break_before(TrialTraining, "log", "last step", lambda trial, step, *rest: step == trial._total)
        _break_before(TrialTraining, "finish", "saving")
        # This one runs on a trial's own thread: the other trials of the worker continue.
        _break_before(adapters, "write_tensors", "writing")
    elif "agent" in sys.orig_argv:
        from kto_sweep.agent.wandb_run import TrialRun

        _break_before(TrialRun, "_close", "closing")


def _break_before(owner: Any, name: str, phase: str, when: Callable[..., bool] = lambda *_: True) -> None:
    """Make the function `name` of `owner` wait at the breakpoint of `phase` when `when(*args)` is true."""
    real = getattr(owner, name)

    def waiting(*args: Any, **options: Any) -> Any:
        if when(*args):
            _wait(Path(os.environ[FOLDER]), phase)
        return real(*args, **options)

    setattr(owner, name, waiting)


def _wait(folder: Path, phase: str) -> None:
    """Wait until the breakpoint is released, if it is set. It holds the first process only."""
    try:
        # A rename is atomic: of two processes that get here, one succeeds.
        (folder / phase).rename(folder / "waiting")
    except OSError:
        return
    end = time.monotonic() + LONGEST_SECONDS
    while (folder / "waiting").exists() and time.monotonic() < end:
        time.sleep(0.02)


class Breakpoints:
    """Sets and releases the breakpoints of one harness, from its test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "breakpoints"
        site = folder / "site"
        for new in (self._folder, site):
            new.mkdir(parents=True)
        (site / "sitecustomize.py").write_text(SITE)
        paths = [str(site), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        self.environ = {"PYTHONPATH": os.pathsep.join(paths), FOLDER: str(self._folder)}
        """Environment variables for the harness."""

    def hold(self, phase: str) -> None:
        """Hold the next process that reaches this phase."""
        (self._folder / phase).touch()

    def wait(self, harness: "SweepHarness") -> None:
        """Wait until a process is held."""
        harness.wait((self._folder / "waiting").exists, 120, "a process at the breakpoint")

    def release(self) -> None:
        """Let the held process continue."""
        (self._folder / "waiting").unlink(missing_ok=True)
