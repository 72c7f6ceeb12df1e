"""A Report that looks after the trial: it warns of bad signs and ends the trial that cannot recover."""

from collections.abc import Mapping

from kto_sweep.errors import FailureCause, TrialFailure
from kto_sweep.train.health import Finding, Health, Judged
from kto_sweep.train.result import Report
from kto_sweep.train.schedule import warmup_steps
from kto_sweep.trial import Trial


class Watch:
    """Passes everything on to `report`, and adds what Health finds in the metrics."""

    def __init__(self, report: Report, trial: Trial, counts: tuple[int, int]) -> None:
        """`counts`: (desirable, undesirable) rows to train on."""
        self._report = report
        self._trial = trial
        self._counts = counts
        self._health: Health | None = None

    def preparing(self, what: str, done: int, total: int) -> None:
        """Pass it on."""
        self._report.preparing(what, done, total)

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        """Pass it on, and begin to look after the trial."""
        trial, (desirable, undesirable) = self._trial, self._counts
        weights = trial.weights(desirable, undesirable)
        mean_weight = (weights[0] * desirable + weights[1] * undesirable) / (desirable + undesirable)
        warmup = warmup_steps(total_steps, trial.warmup_ratio)
        self._health = Health(Judged(trial.beta, mean_weight / 2, warmup, total_steps))
        self._report.plan(total_steps, done_steps)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Pass it on, then warn of what is new in it. Raises TrialFailure when the trial has diverged."""
        self._report.metrics(step, values)
        for finding in self._see(step, values):
            self._report.note(f"WARNING: step {step}: {finding.title}: {finding.text}")
            self._report.alert(f"KTO: {finding.title}", f"step {step}: {finding.text}")
            if finding.fatal:
                raise TrialFailure(FailureCause.DIVERGED, f"step {step}: {finding.text}")

    def recall(self, step: int, values: Mapping[str, float]) -> None:
        """Take note of what was passed on, and warned of, before."""
        self._see(step, values)

    def note(self, text: str) -> None:
        """Pass it on."""
        self._report.note(text)

    def alert(self, title: str, text: str) -> None:
        """Pass it on."""
        self._report.alert(title, text)

    def _see(self, step: int, values: Mapping[str, float]) -> list[Finding]:
        if self._health is None:
            raise ValueError("metrics before a plan")
        return self._health.see(step, values)
