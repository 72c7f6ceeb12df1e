"""Prepares a run from the command line: checks its parameters, chooses server and folder."""

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kto_sweep.data.examples import Progress, check_readable
from kto_sweep.data.sources import require_apart
from kto_sweep.errors import TrialConfigError, UsageError
from kto_sweep.home import Home
from kto_sweep.paths import resolved
from kto_sweep.plan.trial_model import require_trainable
from kto_sweep.sweep.ref import DEFAULT_PROJECT
from kto_sweep.sweep.server_choice import (
    find_remote,
    find_target,
    local_target,
)
from kto_sweep.train_command.options import (
    MIN_EVAL_FRACTION,
    describe_changes,
    flatten,
    override,
    read_config,
    run_name,
    with_preset,
)
from kto_sweep.train_command.resume import (
    find_source,
    interrupted_runs,
    read_trial_config,
    require_resumable,
    restore_working_directory,
)
from kto_sweep.train_command.run import Job
from kto_sweep.trial import Trial
from kto_sweep.wandb_client.connection import Target
from kto_sweep.wandb_names import require_name


@dataclass(frozen=True)
class TrainOptions:
    """The command line of `kto-sweep train`."""

    flags: Mapping[str, Any]
    """Parameters set by flags."""
    config: Path | None
    source: str | None
    """A sweep or run that provides parameters."""
    whole_data: bool
    gradient_accumulation: int | None
    output_dir: Path | None
    wandb: bool | None
    """True: W&B. False: the embedded server. None: W&B if there is a key."""
    project: str | None
    entity: str | None
    name: str | None
    resume: str | None
    """A run, its folder, or auto."""


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to start or resume."""

    job: Job
    target: Target
    offline: bool
    """W&B files are only written, not sent."""
    output_dir: Path | None

    def folder(self) -> Path | None:
        """The resolved --output-dir. Raises UsageError if it is not empty."""
        if self.output_dir is None:
            return None
        folder = resolved(self.output_dir)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                f"--output-dir {self.output_dir} is not empty",
                hint=f"choose another, or resume its run: --resume-from-checkpoint {self.output_dir}",
            )
        return folder

    def make_folder(self, home: Home) -> None:
        """Create --output-dir and link it from the run's folder under the home.

        Raises UsageError if it is not empty or cannot be created.
        """
        link = home.runs / self.job.run_id
        folder = self.folder()
        if folder is None or link.exists():
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"--output-dir {self.output_dir}: {error.strerror}", hint="choose another"
            ) from error
        link.parent.mkdir(parents=True, exist_ok=True)
        for old in home.runs.iterdir():  # links left by runs that were deleted or never started
            if old.is_symlink() and old.resolve() == folder:
                old.unlink()
        link.symlink_to(folder)


def prepare(
    home: Home,
    options: TrainOptions,
    say: Callable[[str], None],
    progress: Progress = lambda _: None,
) -> PreparedRun:
    """The run to start or resume; `say` prints automatic choices, `progress` counts examples.

    Raises UsageError and DataError for a run that cannot be trained, ServerError for an unreachable server.
    """
    if options.resume is not None:
        resumed = _resumed(home, options, options.resume, say)
        if resumed is not None:
            return resumed
    project = _wandb_name("project", options.project) or DEFAULT_PROJECT
    entity = _wandb_name("entity", options.entity)
    trial = _trial(home, options, say)
    check_readable(
        trial.dataset, progress
    )  # report unusable data before the run exists, and an unusable model
    if trial.eval_dataset is not None:
        check_readable(trial.eval_dataset, progress)
        require_apart(trial.dataset, trial.eval_dataset)
    for problem in require_trainable(trial):
        say(problem.labelled)
    target, offline = _server(home, options.wandb)
    if target.local and not options.entity:
        entity = None  # the variable names a team of W&B
    job = Job(
        secrets.token_hex(4),
        trial,
        options.name or os.environ.get("WANDB_NAME") or run_name(trial),
        project,
        entity,
    )
    return PreparedRun(job, target, offline, options.output_dir)


def _wandb_name(kind: str, option: str | None) -> str | None:
    """The project or entity of the option or of wandb's variable. Raises UsageError if W&B rejects it."""
    variable = f"WANDB_{kind.upper()}"
    name, source = (option, f"--{kind}") if option else (os.environ.get(variable) or None, variable)
    require_name(kind, name, source)
    return name


def _overrides(options: TrainOptions, base: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """The parameters that the command line sets."""
    flags = dict(options.flags)
    if options.whole_data:
        for name in ("eval_fraction", "eval_dataset"):
            if name in flags:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"--whole-data and {option} cannot be used together", hint="use only one")
        flags["eval_fraction"] = MIN_EVAL_FRACTION
    if options.gradient_accumulation is not None:
        batch_size = flags.get("batch_size", base.get("batch_size", 8))
        trial = _checked({"dataset": "-", "model_size": "tiny", "batch_size": batch_size})
        flags["batch_size"] = trial.batch_size * options.gradient_accumulation
        say(
            f"batch_size {flags['batch_size']}: {trial.batch_size} x {options.gradient_accumulation} "
            "examples per optimizer step; the micro-batch size is chosen automatically"
        )
    return flags


def _trial(home: Home, options: TrainOptions, say: Callable[[str], None]) -> Trial:
    base: dict[str, Any] = {}
    if options.source is not None:
        source = find_source(home, options.source, local=options.wandb is False)
        say(f"Parameters from {source.description}")
        base = source.config
    if options.config is not None:
        base = override(base, flatten(read_config(options.config)))
    config = override(base, _overrides(options, base, say))
    if options.source is None:
        config = with_preset(config)
    return _checked(config)


def _checked(config: Mapping[str, Any]) -> Trial:
    """The trial. Raises TrialConfigError, or UsageError with the flags for a missing data set or model."""
    try:
        return Trial.from_config(config)
    except TrialConfigError as error:
        missing = []
        if config.get("dataset") is None:
            missing.append(("no data to train on", "--local-file rows.jsonl, or --dataset-name OWNER/NAME"))
        if config.get("model") is None and config.get("model_size") is None:
            missing.append(
                ("no model to train", "--model-size 7b (to list them: kto-sweep models), or --model-name")
            )
        if not missing or len(error.problems) > len(missing):
            raise
        messages, hints = zip(*missing, strict=True)
        raise UsageError(", and ".join(messages), hint="; ".join(hints)) from error


def _server(home: Home, wandb: bool | None) -> tuple[Target, bool]:
    """The server of a new run, and whether the run is offline (synced later)."""
    from kto_sweep.wandb_client.private_api import find_login

    if wandb is False:
        return local_target(home), False
    login = find_login()
    if login.mode == "offline":
        # `wandb offline` applies only to the current folder, but the run has its own.
        os.environ["WANDB_MODE"] = "offline"
        return Target(login.base_url, login.app_url, local=False), True
    if wandb and login.mode == "disabled":
        raise UsageError("--wandb, but W&B is disabled here", hint="unset WANDB_MODE, or run: wandb enabled")
    return (find_remote(None) if wandb else find_target(home, local=False)), False


def _resumed(home: Home, options: TrainOptions, name: str, say: Callable[[str], None]) -> PreparedRun | None:
    """The run to resume; None if `auto` finds none."""
    if name == "auto":
        candidates = [folder for folder in interrupted_runs(home) if _matches(folder, options)]
        if not candidates:
            if not (options.flags or options.config or options.source):
                raise UsageError("no interrupted run on this box", hint="kto-sweep train --help")
            say("No interrupted run with these parameters on this box; starting a new one")
            return None
        name = candidates[0].name
    folder, record = require_resumable(home, name)
    before = _checked(read_trial_config(folder))
    after = _checked(override(before.to_config(), _overrides(options, before.to_config(), lambda line: None)))
    if changes := describe_changes(before, after):
        raise UsageError(
            f"run {folder.name} cannot be resumed with {changes}",
            hint=f"drop the change, or start a new run with it: kto-sweep train --from {folder.name} ...",
        )
    if record.local or options.wandb is False:
        target, offline = local_target(home), False
    else:
        if record.base_url:
            os.environ.setdefault("WANDB_BASE_URL", record.base_url)
        target, offline = _server(home, True)
    restore_working_directory(folder)
    say(f"Resuming run {folder.name}")
    offline_name = run_name(before) if offline else ""
    job = Job(folder.name, before, options.name or offline_name, record.project, record.entity or None)
    return PreparedRun(job, target, offline, None)


def _matches(folder: Path, options: TrainOptions) -> bool:
    """Whether a run matches the parameters that the command line sets."""
    before = _checked(read_trial_config(folder))
    flags = _overrides(options, before.to_config(), lambda line: None)
    return not describe_changes(before, _checked(override(before.to_config(), flags)))
