"""Trials under wandb's own agents: one process that both trains and logs."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import wandb

from kto_sweep.agent.alert_log import AlertLog
from kto_sweep.agent.model_upload import ModelUpload, read_log_model
from kto_sweep.agent.wandb_run import set_record
from kto_sweep.alerts import AlertLevel, RuleChecker, RunAlert, rules_of
from kto_sweep.env_vars import ENTITY, PROJECT, load_env_file, prepare
from kto_sweep.errors import KtoSweepError, UsageError
from kto_sweep.home import Home
from kto_sweep.provenance import Provenance
from kto_sweep.run_log import RunLog
from kto_sweep.sweep.ref import parse_ref
from kto_sweep.sweep_file.command import is_flag, read_command, with_flags
from kto_sweep.text import printable, progress_text
from kto_sweep.trial import Trial, with_defaults

ASSIGNED = frozenset({wandb.env.SWEEP_ID, wandb.env.RUN_ID, wandb.env.SWEEP_PARAM_PATH})
"""Variables in which `wandb agent` names the trial of a process."""


class WandbAgentReport:
    """A Report for training functions that logs to this process's run and prints its table."""

    def __init__(self, run: wandb.Run, folder: Path) -> None:
        self._run = run
        self._rules = RuleChecker(rules_of(dict(run.config)))
        self._alerts = AlertLog(run, folder)
        self._step = 0
        self._files = RunLog(folder, echo=_print)
        self._upload = ModelUpload(run, folder, read_log_model(), self.note)

    def preparing(self, what: str, done: int, total: int) -> None:
        """Print the progress of the preparation."""
        _print(progress_text(what, done, total))

    def loaded(self, provenance: Provenance) -> None:
        """Put it into the run's configuration."""
        set_record(self._run, provenance.to_json())

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        """Set the number of optimizer steps."""
        self._run.summary["trial/steps"] = total_steps
        self._files.plan(total_steps, done_steps)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log to the run and to the files."""
        self._run.log(dict(values), step=step)
        self._files.metrics(step, values)
        self._step = step
        self._upload.checkpoint()
        for alert in self._rules.check(step, values):
            self.alert(alert)

    def note(self, text: str) -> None:
        """Print one line, which wandb adds to the run's console log."""
        self._files.note(text)

    def alert(self, alert: RunAlert) -> None:
        """Send a W&B alert, and print it."""
        self._alerts.send(alert)
        self.note(str(alert))

    def finished(self) -> None:
        """Log the final weights as an artifact if the environment asks for it."""
        self._upload.final()

    def failed(self, cause: str, message: str) -> None:
        """Send an alert that the trial failed, unless one has said so."""
        if not self._alerts.has_error:
            self._alerts.send(RunAlert(AlertLevel.ERROR, f"failed: {cause}", message, self._step))


def _print(text: str) -> None:
    print(printable(text), flush=True)


def train_one(read_arguments: Callable[[wandb.Run], Sequence[str]]) -> None:
    """Train the trial that wandb's agent assigned, in its run.

    `read_arguments` gives the command line of the trial, which may fix parameters.
    Raises SystemExit with status 1 when the trial fails; its cause is in the run's summary.
    """
    from kto_sweep.train.context import WorkerContext
    from kto_sweep.train.failures import classify
    from kto_sweep.train.worker.loop import train_trial

    home = Home.from_environment()
    with wandb.init() as run:
        folder = home.runs / run.id
        report: WandbAgentReport | None = None
        try:
            assigned = dict(run.config)
            config = with_flags(assigned, read_arguments(run))
            trial = Trial.from_config(config)
            # A run shows what it trains with: what the command line fixes is part of its configuration.
            provenance = Provenance.of_process()
            run.config.update(with_defaults(config), allow_val_change=True)
            set_record(run, provenance.to_json())
            report = WandbAgentReport(run, folder)
            result = train_trial(WorkerContext(home), trial, folder, report, lambda: False, provenance)
        except Exception as error:
            if not isinstance(error, KtoSweepError):
                traceback.print_exc()
            failed = classify(error)
            run.summary.update({"failure/cause": str(failed.cause), "failure/message": failed.message})
            if report is not None:
                report.failed(failed.cause, failed.message)
            _print(f"Error: {failed.message}" + (f"\nHint: {failed.hint}" if failed.hint else ""))
            raise SystemExit(1) from error
        run.summary.update(dict(result.summary))
        report.finished()


def _sweep_arguments(run: wandb.Run) -> list[str]:
    """The command line of a trial that no process was started for: that of its sweep's configuration."""
    sweep = wandb.Api().sweep(f"{run.entity}/{run.project}/{run.sweep_id}")
    return read_command(sweep.config).expand(dict(run.config))


def _sweep_name(arguments: Sequence[str]) -> str:
    """The only argument, as wandb names sweeps. Exits with status 2 if there are others."""
    try:
        if len(arguments) > 1:
            raise UsageError(f"{arguments[1]}: unexpected after the name of a sweep", hint="agent.py SWEEP")
        return "/".join(filter(None, parse_ref(arguments[0])))
    except UsageError as error:
        _exit(error)


def _exit(error: UsageError) -> NoReturn:
    print(f"Error: {error.message}\nHint: {error.hint}", file=sys.stderr)
    sys.exit(error.exit_code)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # raises, so that wandb can send its remaining data


def main() -> None:
    """Run one trial; or, with a sweep's name as the only argument, its trials one after another.

    `wandb agent` names the trial in ASSIGNED, and gives its parameters as arguments.
    """
    Home.from_environment().keep_private()
    arguments = sys.argv[1:]
    is_trial = os.environ.keys() >= ASSIGNED
    try:
        notices = load_env_file() if is_trial else prepare(keep=(PROJECT, ENTITY))
        for notice in notices:
            print(printable(f"Note: {notice}"), file=sys.stderr)
    except UsageError as error:
        _exit(error)
    if arguments and not is_trial and not is_flag(arguments[0]):
        wandb.agent(_sweep_name(arguments), function=lambda: train_one(_sweep_arguments))
        return
    signal.signal(signal.SIGTERM, _end)
    train_one(lambda run: arguments)
