"""What a training function is given and what it gives back. No torch here: the supervisor reads these too."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


class Report(Protocol):
    """Where a training function sends what it measures."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """Say how far something is that comes before the first step: `reference log-probs`, 64, 300."""

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        """Say how many optimizer steps the trial takes, and after which of them it goes on; once."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log `values` at optimizer step `step`; steps never fall, and one step may come more than once."""

    def note(self, text: str) -> None:
        """Say one line for the trial's console log."""

    def alert(self, title: str, text: str) -> None:
        """Say that a person should look at the trial."""


@dataclass(frozen=True)
class TrainResult:
    """How one trial ended, when it did not raise TrialFailure."""

    summary: Mapping[str, float | int | str]
    """Final values by metric name; what `wandb` shows as the run's summary."""
    steps: int
    """Optimizer steps done."""
    stopped: bool
    """True when `should_stop` ended it early."""
