"""Finds the run or sweep that `kto-sweep train` takes its configuration from, or the run to resume."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from kto_sweep.agent.lease import is_alive
from kto_sweep.compare.comparison import Comparison, compare
from kto_sweep.compare.confidence import Certainty
from kto_sweep.compare.eval_groups import several_rankings
from kto_sweep.compare.sentences import settings_text, value_text
from kto_sweep.errors import FailureCause, ServerError, UsageError
from kto_sweep.home import Home
from kto_sweep.json_file import parse_json
from kto_sweep.paths import resolved
from kto_sweep.run_record import RunRecord, read_record
from kto_sweep.sweep.ref import SweepRef, load_sweep_record
from kto_sweep.sweep.server_choice import find_sweep
from kto_sweep.text import counted
from kto_sweep.train_command.options import flatten
from kto_sweep.wandb_client.connection import connect, restored_environment
from kto_sweep.wandb_client.reader import read_sweep


@dataclass(frozen=True)
class SourceConfig:
    """The configuration of an earlier run or of a sweep's best trial."""

    config: dict[str, Any]
    description: str
    """Its origin, for people."""


def find_run(home: Home, name: str) -> Path | None:
    """The folder of a run on this box, found by its id, its output folder or a checkpoint in it."""
    if Path(name).name == name and (home.runs / name / "trial.json").is_file():
        return home.runs / name
    path = resolved(name)
    path = path.parent if path.name in {"checkpoint", "adapter", "best", "model"} else path
    folders = (folder for folder in home.runs.glob("*") if folder.resolve() == path)
    return next((folder for folder in folders if (folder / "trial.json").is_file()), None)


def require_run(home: Home, name: str) -> Path:
    """Like `find_run`, but raises UsageError if there is no such run."""
    folder = find_run(home, name)
    if folder is None:
        raise UsageError(f"this box has no run {name!r}", hint=f"its runs are the folders in {home.runs}")
    return folder


def read_trial_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run on this box. Raises UsageError if its file cannot be read."""
    try:
        return flatten(parse_json((folder / "trial.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / 'trial.json'}: {error}", hint="choose another run") from error


def find_source(home: Home, name: str, *, local: bool) -> SourceConfig:
    """The configuration of a run, or of a sweep's best trial.

    Raises UsageError if there is no such run or sweep, ServerError for an unreachable server.
    """
    name = _path_from_url(name)
    run_id = name.rpartition("/")[2]
    folder = find_run(home, name) or (find_run(home, run_id) if name.count("/") == 2 else None)
    if folder is not None:
        return SourceConfig(read_trial_config(folder), f"run {folder.name} on this box")
    local = local and load_sweep_record(home, run_id) is None  # a recorded sweep is read from its own server
    with restored_environment():
        return _find_on_server(home, name, local=local)


def _path_from_url(name: str) -> str:
    """ENTITY/PROJECT/ID for the URL of a run's page; other names unchanged."""
    parts = [unquote(part) for part in urlsplit(name).path.split("/") if part]
    if "://" in name and len(parts) >= 4 and parts[2] == "runs":
        return "/".join((parts[0], parts[1], parts[3]))
    return name


def _find_on_server(home: Home, name: str, *, local: bool) -> SourceConfig:
    target, ref = find_sweep(home, name, local=local)
    api = connect(target)
    try:
        view = read_sweep(api, target, ref)
    except ServerError:
        from kto_sweep.wandb_client.private_api import read_run

        run = read_run(api, SweepRef(ref.entity, ref.project, ""), ref.id)
        if run is None:
            raise UsageError(
                f"{target} has no sweep or run {name}",
                hint="use a sweep's or run's id, or ENTITY/PROJECT/ID; for the last sweep: kto-sweep status",
            ) from None
        return SourceConfig(flatten(run[1]), f"run {ref.id} on {target}")
    return _winner(compare(view))


def _winner(comparison: Comparison) -> SourceConfig:
    """The configuration that the sweep's comparison names as the best.

    Raises UsageError if no trial ranks, or if trials were judged on different rows.
    """
    ref, verdict = comparison.view.ref, comparison.verdict
    if not comparison.verdicts:
        raise UsageError(
            f"no trial of sweep {ref} has finished with a value of {comparison.metric}",
            hint=f"kto-sweep status {ref.argument}",
        )
    if verdict is None:
        (why,) = several_rankings(comparison.metric, [each.group for each in comparison.verdicts])
        runs = ", ".join(f"{each.winner.trials[0].run_id} ({each.group})" for each in comparison.verdicts)
        raise UsageError(f"sweep {ref} has no single best trial: {why}", hint=f"name one of its runs: {runs}")
    best = verdict.winner.trials[0]
    certainty = {
        Certainty.CLEAR: "a clear winner",
        Certainty.TIE: f"tied with {counted(len(verdict.tied), 'other configuration')}",
        Certainty.UNKNOWN: "whose lead may be seed noise"
        if verdict.others
        else "the only one that has finished",
    }[verdict.certainty]
    description = (
        f"the best configuration of sweep {ref}, {settings_text(verdict.winner.settings)}: "
        f"{comparison.metric} {value_text(verdict)}, {certainty}; the rest is that of its run {best.label}"
    )
    return SourceConfig(flatten(best.config), description)


def interrupted_runs(home: Home) -> list[Path]:
    """The interrupted single runs on this box, newest first.

    Excludes diverged runs, which would diverge again.
    """
    interrupted = []
    for folder in home.runs.glob("*"):
        record = read_record(folder)
        if record is None or record.sweep or (record.agent and is_alive(home, record.agent)):
            continue
        result = _result(folder)
        over = result.get("end") == "finished" or result.get("cause") == FailureCause.DIVERGED
        if not over and (folder / "trial.json").is_file():
            interrupted.append(folder)
    return sorted(interrupted, key=lambda folder: (folder / "trial.json").stat().st_mtime, reverse=True)


def restore_working_directory(folder: Path) -> None:
    """Change to the run's original working directory, so that relative paths of its data and model resolve.

    Does nothing if that directory is unknown or gone.
    """
    directory = _lineage(folder).get("working_directory")
    if isinstance(directory, str) and Path(directory).is_dir():
        os.chdir(directory)


def _lineage(folder: Path) -> dict[str, Any]:
    """The content of the run's lineage file; empty if missing or unreadable."""
    try:
        return dict(parse_json((folder / "lineage.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _result(folder: Path) -> dict[str, Any]:
    """How the run's last attempt ended; empty if unknown."""
    return dict(_lineage(folder).get("result", {}))


def require_resumable(home: Home, name: str) -> tuple[Path, RunRecord]:
    """The folder and record of an unfinished single run on this box. Raises UsageError for any other."""
    folder = require_run(home, name)
    record = read_record(folder)
    if record is None:
        raise UsageError(f"{folder} has no readable run.json", hint="choose another run, or auto")
    if record.sweep:
        sweep = SweepRef(record.entity, record.project, record.sweep)
        raise UsageError(f"{folder.name} is a trial of a sweep", hint=f"kto-sweep agent {sweep.argument}")
    if _result(folder).get("end") == "finished":
        raise UsageError(
            f"run {folder.name} is finished",
            hint=f"start a new run: kto-sweep train --from {folder.name} --epochs 2",
        )
    if record.agent and is_alive(home, record.agent):
        raise UsageError(f"run {folder.name} is being trained now", hint="wait until it ends, or stop it")
    return folder, record
