"""A trial that somebody wants trained, and what they hear of it before its first step."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.train.result import Report
from kto_sweep.trial import Trial


class ToldToStopError(Exception):
    """A trial was told to stop before its first step."""


@dataclass(frozen=True)
class Request:
    """A trial to train."""

    run_id: str
    trial: Trial
    folder: Path
    """Where its files go; if they hold the trial's checkpoint, it goes on from there."""
    report: Report
    should_stop: Callable[[], bool] = lambda: False
    logged: int | None = None
    """The last step whose row the report's reader has; None: as many as the checkpoint has steps."""

    def reference_progress(self, done: int, total: int) -> None:
        """Report how many rows have reference values. Raises ToldToStopError when the trial is to stop."""
        self.report.preparing("reference log-probs", done, total)
        if self.should_stop():
            raise ToldToStopError
