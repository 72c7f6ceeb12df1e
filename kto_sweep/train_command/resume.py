"""Runs and sweeps that `kto-sweep train` starts from: a configuration to take, a run to go on with."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from kto_sweep.agent.lease import is_alive
from kto_sweep.compare.ranking import rank
from kto_sweep.errors import FailureCause, ServerError, UsageError
from kto_sweep.home import Home
from kto_sweep.run_record import RunRecord, read_record
from kto_sweep.sweep.ref import SweepRef, recall
from kto_sweep.sweep.server_choice import find_sweep
from kto_sweep.train_command.options import flat
from kto_sweep.wandb_client.connection import connect, other_server
from kto_sweep.wandb_client.reader import read_sweep


@dataclass(frozen=True)
class Earlier:
    """A configuration that was trained before."""

    config: dict[str, Any]
    told: str
    """Where it comes from, for people."""


def find_run(home: Home, name: str) -> Path | None:
    """The folder of a run of this box, named by its id, its output folder or a checkpoint in it."""
    if Path(name).name == name and (home.runs / name / "trial.json").is_file():
        return home.runs / name
    path = Path(name).expanduser().resolve()
    path = path.parent if path.name in {"checkpoint", "adapter", "best", "model"} else path
    found = (folder for folder in home.runs.glob("*") if folder.resolve() == path)
    return next((folder for folder in found if (folder / "trial.json").is_file()), None)


def known_run(home: Home, name: str) -> Path:
    """The folder of a run of this box, as `find_run`. Raises UsageError when there is none."""
    folder = find_run(home, name)
    if folder is None:
        raise UsageError(f"this box has no run {name!r}", hint=f"its runs are the folders in {home.runs}")
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    """The configuration of a run of this box. Raises UsageError when its file cannot be read."""
    try:
        return flat(json.loads((folder / "trial.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / 'trial.json'}: {error}", hint="name another run") from error


def find_earlier(home: Home, name: str, *, local: bool) -> Earlier:
    """The configuration of a run, or of a sweep's best trial.

    Raises UsageError when there is none of the name, ServerError when the server cannot be had.
    """
    name = _named_by_address(name)
    run_id = name.rpartition("/")[2]
    folder = find_run(home, name) or (find_run(home, run_id) if name.count("/") == 2 else None)
    if folder is not None:
        return Earlier(config_of(folder), f"run {folder.name} of this box")
    local = local and recall(home, run_id) is None  # a sweep that is known is looked for where it is
    with other_server():
        return _find_there(home, name, local=local)


def _named_by_address(name: str) -> str:
    """ENTITY/PROJECT/ID for the address of a run's page; other names as they are."""
    parts = [unquote(part) for part in urlsplit(name).path.split("/") if part]
    if "://" in name and len(parts) >= 4 and parts[2] == "runs":
        return "/".join((parts[0], parts[1], parts[3]))
    return name


def _find_there(home: Home, name: str, *, local: bool) -> Earlier:
    target, ref = find_sweep(home, name, local=local)
    api = connect(target)
    try:
        view = read_sweep(api, target, ref)
    except ServerError:
        from kto_sweep.wandb_client.private_api import read_run

        found = read_run(api, SweepRef(ref.entity, ref.project, ""), ref.id)
        if found is None:
            raise UsageError(
                f"{name} is no sweep and no run of {target}",
                hint="give a sweep's or a run's id, or ENTITY/PROJECT/ID; kto-sweep status shows the last",
            ) from None
        return Earlier(flat(found[1]), f"run {ref.id} of {target}")
    ranked = rank(view.trials, view.metric, view.goal)
    if not ranked or ranked[0].rank is None:
        raise UsageError(
            f"sweep {ref} has no trial with a value of {view.metric}", hint=f"kto-sweep status {ref.id}"
        )
    best = ranked[0]
    value = f"{view.metric} {best.value:.4g}"
    told = f"run {best.trial.run_id} ({best.trial.name}), the best of sweep {ref}: {value}"
    return Earlier(flat(best.trial.config), told)


def unfinished(home: Home) -> list[Path]:
    """The runs of no sweep on this box that were cut off, the one begun last first.

    One that has diverged would do so again.
    """
    ours = []
    for folder in home.runs.glob("*"):
        record = read_record(folder)
        if record is None or record.sweep or (record.agent and is_alive(home, record.agent)):
            continue
        result = _result(folder)
        over = result.get("end") == "finished" or result.get("cause") == FailureCause.DIVERGED
        if not over and (folder / "trial.json").is_file():
            ours.append(folder)
    return sorted(ours, key=lambda folder: (folder / "trial.json").stat().st_mtime, reverse=True)


def go_where_it_began(folder: Path) -> None:
    """Change to the directory that a run was begun in: relative names of its data and model mean files there.

    Where it is gone, or not known, nothing changes.
    """
    directory = _lineage(folder).get("working_directory")
    if isinstance(directory, str) and Path(directory).is_dir():
        os.chdir(directory)


def _lineage(folder: Path) -> dict[str, Any]:
    """What the run's lineage file holds; empty when there is none that can be read."""
    try:
        return dict(json.loads((folder / "lineage.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _result(folder: Path) -> dict[str, Any]:
    """How the run's last attempt ended; empty when that is not known."""
    return dict(_lineage(folder).get("result", {}))


def resumable(home: Home, name: str) -> tuple[Path, RunRecord]:
    """The folder and record of an unfinished run of this box. Raises UsageError when it is none."""
    folder = known_run(home, name)
    record = read_record(folder)
    if record is None:
        raise UsageError(f"{folder} has no run.json that can be read", hint="name another run, or auto")
    if record.sweep:
        raise UsageError(f"{folder.name} is a trial of a sweep", hint=f"kto-sweep agent {record.sweep}")
    if _result(folder).get("end") == "finished":
        raise UsageError(
            f"run {folder.name} is finished",
            hint=f"train anew: kto-sweep train --from {folder.name} --epochs 2",
        )
    if record.agent and is_alive(home, record.agent):
        raise UsageError(f"run {folder.name} is being trained now", hint="wait for it, or end that process")
    return folder, record
