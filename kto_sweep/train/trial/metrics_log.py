"""A trial's rows, one for each optimizer step: written to disk, checked for signs of trouble, and reported.

A trial that continues from step 40 reads its first 40 rows from the file. They give its summary, its health
so far, and the rows that the reader of its report has not received.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from kto_sweep.alerts import AlertLevel, RunAlert
from kto_sweep.errors import FailureCause, TrialFailure
from kto_sweep.row_file import RowFile
from kto_sweep.sweep.view import UNSTABLE
from kto_sweep.train.packed.optim import warmup_steps
from kto_sweep.train.trial.health import Health
from kto_sweep.train.trial.request import Report
from kto_sweep.train.trial.row_history import HealthContext
from kto_sweep.trial import Trial


class MetricsLog:
    """Logs a trial's rows in order, starting after those in the file at `path`."""

    def __init__(self, path: Path, report: Report, trial: Trial, counts: tuple[int, int]) -> None:
        """`counts`: (desirable, undesirable) training rows. Raises OSError."""
        self._file = RowFile(path)
        self._report = report
        self._trial = trial
        self._counts = counts
        self._health: Health | None = None
        self._last_step = 0
        self._reported = 0
        """The last step whose row the report's reader has."""
        self.summary: dict[str, float | int | str] = {}
        """The last value of each metric."""

    def resume(self, total: int, done: int, logged: int | None) -> None:
        """Start after `done` of `total` steps; rows of later steps are removed, they are logged again.

        `logged`: the last step whose row the reader has. Rows after it are reported now, the others never
        again. None: the reader has all rows in the file.
        """
        rows = self._file.keep(done)
        self._reported = done if logged is None else logged
        self._health = Health(self._health_context(total))
        self._report.plan(total, self._reported)
        for step, values in rows.items():
            self._add(step, values)

    def _health_context(self, total: int) -> HealthContext:
        trial, (desirable, undesirable) = self._trial, self._counts
        weights = trial.weights(desirable, undesirable)
        mean_weight = (weights[0] * desirable + weights[1] * undesirable) / (desirable + undesirable)
        # Untrained, every example's loss is half its weight.
        warmup = warmup_steps(total, trial.warmup_ratio)
        return HealthContext(trial.beta, mean_weight / 2, warmup, total, trial.max_grad_norm)

    def has(self, steps: int) -> bool:
        """Whether the file has the rows of the first `steps` steps."""
        return len(self._file.rows(steps)) == steps

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write and report the row of `step`, with warnings. Raises TrialFailure when the trial has diverged.

        Raises OSError when the disk is full.
        """
        # To disk first: a row that was reported is never measured again, so it must not be lost.
        self._file.append_row(step, values)
        self._add(step, values)

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        if self._health is None:
            raise ValueError("call resume first")
        self.summary |= values
        self._last_step = step
        # Rows from the file too: trends need a whole window of them.
        issues = self._health.check(step, values)
        if step > self._reported:  # else the reader has the row, and its warnings
            self._report.metrics(step, values)
            for issue in issues:
                level = AlertLevel.ERROR if issue.fatal else AlertLevel.WARN
                self._report.alert(RunAlert(level, issue.title, issue.text, step))
        # A reported row fails the trial too: its process may have died between the row and the failure.
        for issue in issues:
            if issue.fatal:
                raise TrialFailure(FailureCause.DIVERGED, f"step {step}: {issue.text}")

    def conclude(self) -> dict[str, str]:
        """What to add to the summary of a trial that has taken its last step; an alert if it is unstable."""
        message = self._health.judge() if self._health is not None else ""
        if not message:
            return {}
        self._report.alert(RunAlert(AlertLevel.ERROR, UNSTABLE, message, self._last_step))
        return {"trial/health": UNSTABLE, "trial/health_message": message}

    def syncing(self) -> Callable[[], None]:
        """A function for any thread that puts the present rows on the disk; it raises OSError."""
        return self._file.syncing()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
