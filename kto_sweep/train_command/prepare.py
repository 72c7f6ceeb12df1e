"""From what was typed to a run that can begin: its parameters checked, its server and folder chosen."""

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kto_sweep.data.formats import load_examples
from kto_sweep.errors import TrialConfigError, UsageError
from kto_sweep.home import Home
from kto_sweep.sweep.server_choice import (
    DEFAULT_PROJECT,
    find_remote,
    find_target,
    load_env_file,
    local_target,
)
from kto_sweep.train_command.options import (
    WHOLE_DATA,
    difference,
    flat,
    over,
    read_config,
    run_name,
    with_preset,
)
from kto_sweep.train_command.resume import (
    config_of,
    find_earlier,
    go_where_it_began,
    resumable,
    unfinished,
)
from kto_sweep.train_command.run import Job
from kto_sweep.trial import Trial
from kto_sweep.wandb_client.connection import Target


@dataclass(frozen=True)
class Asked:
    """The command line of `kto-sweep train`."""

    typed: Mapping[str, Any]
    """Parameters."""
    config: Path | None
    source: str | None
    """A sweep or a run."""
    whole_data: bool
    gradient_accumulation: int | None
    output_dir: Path | None
    wandb: bool | None
    """True: W&B; False: the embedded server; None: W&B if there is a key."""
    project: str | None
    entity: str | None
    name: str | None
    resume: str | None
    """A run, its folder, or auto."""


@dataclass(frozen=True)
class Prepared:
    """A run that can begin, or go on."""

    job: Job
    target: Target
    offline: bool
    """Its W&B files are written and not sent."""
    output_dir: Path | None

    def folder(self) -> Path | None:
        """The output folder that was asked for. Raises UsageError when something is in it already."""
        if self.output_dir is None:
            return None
        folder = self.output_dir.expanduser().resolve()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                f"--output-dir {self.output_dir} is not empty",
                hint=f"choose another, or go on with its run: --resume-from-checkpoint {self.output_dir}",
            )
        return folder

    def make_folder(self, home: Home) -> None:
        """Have the run's files in the output folder, which the run's place in the home then points to.

        Raises UsageError when something is in it already, or it cannot be made.
        """
        place = home.runs / self.job.run_id
        folder = self.folder()
        if folder is None or place.exists():
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"--output-dir {self.output_dir}: {error.strerror}", hint="choose another"
            ) from error
        place.parent.mkdir(parents=True, exist_ok=True)
        for link in home.runs.iterdir():  # of a run that was removed, or cut off before it began
            if link.is_symlink() and link.resolve() == folder:
                link.unlink()
        place.symlink_to(folder)


def prepare(home: Home, asked: Asked, say: Callable[[str], None]) -> Prepared:
    """The run that was asked for; what was decided for the user goes to `say`.

    Raises UsageError and DataError for what cannot be trained, ServerError when a server cannot be had.
    """
    load_env_file(Path.cwd())
    if asked.resume is not None:
        found = _resumed(home, asked, asked.resume, say)
        if found is not None:
            return found
    trial = _trial(home, asked, say)
    load_examples(trial.dataset)  # a file that cannot be trained on is told before a run is begun
    target, offline = _server(home, asked.wandb)
    job = Job(
        secrets.token_hex(4),
        trial,
        asked.name or os.environ.get("WANDB_NAME") or run_name(trial),
        asked.project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
        asked.entity or os.environ.get("WANDB_ENTITY"),
    )
    return Prepared(job, target, offline, asked.output_dir)


def _typed(asked: Asked, base: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """What was typed, in the words of a trial."""
    typed = dict(asked.typed)
    if asked.whole_data:
        if "eval_fraction" in typed:
            raise UsageError("--whole-data and --eval-fraction exclude each other", hint="give one of them")
        typed["eval_fraction"] = WHOLE_DATA
    if asked.gradient_accumulation is not None:
        given = typed.get("batch_size", base.get("batch_size", 8))
        trial = _checked({"dataset": "-", "model_size": "tiny", "batch_size": given})
        typed["batch_size"] = trial.batch_size * asked.gradient_accumulation
        say(
            f"batch_size {typed['batch_size']}: {trial.batch_size} x {asked.gradient_accumulation} examples "
            "per optimizer step; into how many forwards it is split is found out"
        )
    return typed


def _trial(home: Home, asked: Asked, say: Callable[[str], None]) -> Trial:
    base: dict[str, Any] = {}
    if asked.source is not None:
        earlier = find_earlier(home, asked.source, local=asked.wandb is False)
        say(f"Parameters from {earlier.told}")
        base = earlier.config
    if asked.config is not None:
        base = over(base, flat(read_config(asked.config)))
    config = over(base, _typed(asked, base, say))
    if asked.source is None:
        config = with_preset(config)
    return _checked(config)


def _checked(config: Mapping[str, Any]) -> Trial:
    """The trial. Raises UsageError that speaks of flags."""
    try:
        return Trial.from_config(config)
    except TrialConfigError as error:
        absent = []
        if config.get("dataset") is None:
            absent.append(("no data to train on", "--local-file rows.jsonl, or --dataset-name OWNER/NAME"))
        if config.get("model") is None and config.get("model_size") is None:
            absent.append(
                ("no model to train", "--model-size 7b (kto-sweep models lists them), or --model-name")
            )
        if not absent or len(error.problems) > len(absent):
            raise
        what, hints = zip(*absent, strict=True)
        raise UsageError(", and ".join(what), hint="; ".join(hints)) from error


def _server(home: Home, wandb: bool | None) -> tuple[Target, bool]:
    """The server of a new run, and whether it is only sent to later."""
    from kto_sweep.wandb_client.private_api import find_login

    if wandb is False:
        return local_target(home), False
    login = find_login()
    if login.mode == "offline":
        os.environ["WANDB_MODE"] = (
            "offline"  # `wandb offline` says it for this folder alone, not for the run's
        )
        return Target(login.base_url, login.app_url, local=False), True
    if wandb and login.mode == "disabled":
        raise UsageError("--wandb, but W&B is disabled here", hint="unset WANDB_MODE, or type: wandb enabled")
    return (find_remote(None) if wandb else find_target(home, local=False)), False


def _resumed(home: Home, asked: Asked, name: str, say: Callable[[str], None]) -> Prepared | None:
    """The run to go on with; None when `auto` finds none."""
    if name == "auto":
        candidates = [folder for folder in unfinished(home) if _fits(folder, asked)]
        if not candidates:
            if not (asked.typed or asked.config or asked.source):
                raise UsageError("this box has no run that was cut off", hint="kto-sweep train --help")
            say("No run of these parameters was cut off here: a new one begins")
            return None
        name = candidates[0].name
    folder, record = resumable(home, name)
    before = _checked(config_of(folder))
    after = _checked(over(before.to_config(), _typed(asked, before.to_config(), lambda line: None)))
    if changed := difference(before, after):
        raise UsageError(
            f"run {folder.name} cannot go on with {changed}",
            hint=f"leave that out, or train anew with it: kto-sweep train --from {folder.name} ...",
        )
    if record.local or asked.wandb is False:
        target, offline = local_target(home), False
    else:
        if record.base_url:
            os.environ.setdefault("WANDB_BASE_URL", record.base_url)
        target, offline = _server(home, True)
    go_where_it_began(folder)
    say(f"Going on with run {folder.name}")
    offline_name = run_name(before) if offline else ""
    job = Job(folder.name, before, asked.name or offline_name, record.project, record.entity or None)
    return Prepared(job, target, offline, None)


def _fits(folder: Path, asked: Asked) -> bool:
    """Whether a run is of the parameters that were typed."""
    before = _checked(config_of(folder))
    typed = _typed(asked, before.to_config(), lambda line: None)
    return not difference(before, _checked(over(before.to_config(), typed)))
