"""Trials under wandb's own agents: one process that both trains and logs."""

import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import wandb

from kto_sweep.alerts import RunAlerts, rules_of
from kto_sweep.errors import KtoSweepError
from kto_sweep.home import Home
from kto_sweep.run_log import RunLog


class WandbAgentReport:
    """A Report for training functions that logs to this process's run and prints its table."""

    def __init__(self, run: wandb.Run, folder: Path) -> None:
        self._run = run
        self._alerts = RunAlerts(rules_of(dict(run.config)))
        self._files = RunLog(folder, echo=lambda line: print(line, flush=True))

    def preparing(self, what: str, done: int, total: int) -> None:
        """Print the progress of the preparation."""
        print(f"{what} {done}/{total}", flush=True)

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        """Set the number of optimizer steps."""
        self._files.plan(total_steps, done_steps)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log to the run and to the files."""
        self._run.log(dict(values), step=step)
        self._files.metrics(step, values)
        for title, text in self._alerts.check(values):
            self.alert(title, f"step {step}: {text}")

    def note(self, text: str) -> None:
        """Print one line, which wandb adds to the run's console log."""
        self._files.note(text)

    def alert(self, title: str, text: str) -> None:
        """Send a W&B alert."""
        self._run.alert(title, text)


def train_one() -> None:
    """Train the trial that wandb's agent assigned, in its run.

    Raises SystemExit with status 1 when the trial fails; its cause is in the run's summary.
    """
    from kto_sweep.train.context import WorkerContext
    from kto_sweep.train.failures import classify
    from kto_sweep.train.worker.loop import train_trial
    from kto_sweep.trial import Trial

    home = Home.from_environment()
    with wandb.init() as run:
        folder = home.runs / run.id
        try:
            trial = Trial.from_config(dict(run.config))
            report = WandbAgentReport(run, folder)
            result = train_trial(WorkerContext(home), trial, folder, report, lambda: False)
        except Exception as error:
            if not isinstance(error, KtoSweepError):
                traceback.print_exc()
            failed = classify(error)
            run.summary.update({"failure/cause": str(failed.cause), "failure/message": failed.message})
            print(
                f"Error: {failed.message}\nHint: {failed.hint}" if failed.hint else f"Error: {failed.message}"
            )
            raise SystemExit(1) from error
        run.summary.update(dict(result.summary))


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # raises, so that wandb can send its remaining data


def main() -> None:
    """Run one trial; or, with a sweep's name as the only argument, its trials one after another."""
    from kto_sweep.sweep.server_choice import load_env_file

    load_env_file(Path.cwd())
    names = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    if names:
        wandb.agent(names[0], function=train_one)
        return
    signal.signal(signal.SIGTERM, _end)
    train_one()
