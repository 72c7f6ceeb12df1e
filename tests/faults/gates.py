"""Doors in the processes of an arena: one that is closed keeps a process in an exact phase of its work."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arena import Arena

FOLDER = "GATES"
"""Environment variable: where the doors are."""
LONGEST_SECONDS = 60.0
SITE = "import gates\ngates.build()\n"
"""A sitecustomize for the processes of an arena."""


def build() -> None:
    """Put doors into this process, if it is a worker or an agent."""
    import sys

    if any("kto_sweep.train.worker" in word for word in sys.orig_argv):
        from kto_sweep.train import adapter_files, session
        from kto_sweep.train.course import Course
        from kto_sweep.train.referenced import References

        _before(session, "load_base", "load")
        _before(References, "fill", "reference")
        _before(Course, "evaluation", "evaluation")
        _before(Course, "write", "last step", lambda course, step, *rest: step == course._total)
        _before(Course, "finish", "saving")
        _before(adapter_files, "write_tensors", "writing")  # on the trial's own thread, the others go on
    elif "agent" in sys.orig_argv:
        from kto_sweep.agent.wandb_run import TrialRun

        _before(TrialRun, "_close", "closing")


def _before(owner: Any, name: str, phase: str, when: Callable[..., bool] = lambda *_: True) -> None:
    real = getattr(owner, name)

    def waiting(*args: Any, **options: Any) -> Any:
        if when(*args):
            _wait(Path(os.environ[FOLDER]), phase)
        return real(*args, **options)

    setattr(owner, name, waiting)


def _wait(folder: Path, phase: str) -> None:
    """Wait until the door is opened, if that of this phase is closed; who comes second finds none."""
    try:
        (folder / phase).rename(folder / "waiting")
    except OSError:
        return
    end = time.monotonic() + LONGEST_SECONDS
    while (folder / "waiting").exists() and time.monotonic() < end:
        time.sleep(0.02)


class Gates:
    """The doors of one arena, as its test handles them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "gates"
        site = folder / "site"
        for made in (self._folder, site):
            made.mkdir(parents=True)
        (site / "sitecustomize.py").write_text(SITE)
        places = [str(site), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        self.environ = {"PYTHONPATH": os.pathsep.join(places), FOLDER: str(self._folder)}
        """For the arena."""

    def close(self, phase: str) -> None:
        """Keep the next one who comes to this phase."""
        (self._folder / phase).touch()

    def wait(self, arena: Arena) -> None:
        """Until somebody stands before the closed door."""
        arena.wait((self._folder / "waiting").exists, 120, "the closed door")

    def open(self) -> None:
        """Let him go on."""
        (self._folder / "waiting").unlink(missing_ok=True)
