"""What a trial's trainer gets and returns: the request, where it reports, the result. No torch here."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from kto_sweep.alerts import RunAlert
from kto_sweep.provenance import Provenance
from kto_sweep.trial import Trial


class Report(Protocol):
    """Receives what a trainer measures."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """Progress of work before the first step: `reference log-probs`, 64, 300; `total` 0: unknown."""

    def loaded(self, provenance: Provenance) -> None:
        """Model and data are loaded; may be called again with the same."""

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        """Number of optimizer steps, and of those done before; called once."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Values measured at optimizer step `step`. Steps never fall; one step may come more than once."""

    def note(self, text: str) -> None:
        """One line for the trial's console log."""

    def alert(self, alert: RunAlert) -> None:
        """A W&B alert, and one line for the trial's console log."""


@dataclass(frozen=True)
class TrainResult:
    """How one trial ended, unless it raised TrialFailure."""

    summary: Mapping[str, float | int | str]
    """Final values by metric name, for the run's W&B summary."""
    steps: int
    """Optimizer steps done."""
    stopped: bool
    """Whether `should_stop` ended it early."""


class StopRequestedError(Exception):
    """A trial was told to stop before its first step."""


@dataclass(frozen=True)
class TrialRequest:
    """A trial to train."""

    run_id: str
    trial: Trial
    folder: Path
    """For its files. If they include the trial's checkpoint, it continues from there."""
    report: Report
    should_stop: Callable[[], bool] = lambda: False
    logged: int | None = None
    """The last step whose row the report's reader has; None: as many as the checkpoint has steps."""
    provenance: Provenance = field(default_factory=Provenance)
    """Command, code and environment of the process that started the trial."""

    def load_progress(self, what: str, done: int, total: int) -> None:
        """Report the loading of the base model. Raises as reference_progress does."""
        self.report.preparing(what, done, total)
        if self.should_stop() and threading.current_thread() is threading.main_thread():
            raise StopRequestedError

    def tokenise_progress(self, done: int) -> None:
        """Report how many examples of a large data set are tokenised. Raises as reference_progress does."""
        if done >= 20_000:  # some seconds
            self.report.preparing("tokenised examples", done, 0)
        if self.should_stop():
            raise StopRequestedError

    def reference_progress(self, done: int, total: int) -> None:
        """Report how many rows have reference log-probs. Raises StopRequestedError if the trial must stop."""
        self.report.preparing("reference log-probs", done, total)
        if self.should_stop():
            raise StopRequestedError
