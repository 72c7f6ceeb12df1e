"""Checks before the first trial starts: the sweep's command, and whether data and models are on this box."""

import os
from pathlib import Path

from kto_sweep.errors import UsageError
from kto_sweep.models.presets import names_a_path
from kto_sweep.search.space import Space
from kto_sweep.shipped_files import find_file
from kto_sweep.sweep_file.command import SweepCommand, with_flags
from kto_sweep.sweep_file.data_files import looks_like_file
from kto_sweep.trial import parameter_name


def require_command(command: SweepCommand) -> None:
    """Raise UsageError if no trial can be trained as the sweep's command asks.

    Any client may have registered it, so it is checked here too.
    """
    if not command.program:
        raise UsageError(
            f"the sweep's command, {' '.join(command.wrappers)}, runs no Python program",
            hint="wandb agent SWEEP   (kto-sweep agent runs its own KTO training)",
        )
    missing = [name for name in command.environment_variables() if name not in os.environ]
    if missing:
        raise UsageError(
            f"the sweep's command needs {missing[0]}, which is not set in this environment",
            hint=f"export {missing[0]}=...",
        )
    with_flags({}, command.expand({}))


def require_sources(space: Space, folder: str) -> None:
    """Raise UsageError if none of the sweep's data files, or none of its models, is here: no trial can train.

    `folder`: where the sweep was registered on this box, or empty. Names that may be on the hub are accepted.
    """
    here = Path.cwd()
    for parameter in space.parameters:
        kind = parameter_name(parameter.path)
        names = [str(value) for value in parameter.distribution.extremes()]
        if kind not in ("dataset", "model") or any(_is_here(kind, name, here) for name in names):
            continue
        what = "data file" if kind == "dataset" else "model"
        where = "on this box" if Path(names[0]).expanduser().is_absolute() else f"below {here}"
        in_folder = folder and _is_here(kind, names[0], Path(folder))
        raise UsageError(
            f"{names[0]}: no such {what} {where}; no trial was started",
            hint=f"cd {folder}, then run it again"
            if in_folder
            else "copy it here, or start the agent in its folder",
        )


def _is_here(kind: str, name: str, folder: Path) -> bool:
    if kind == "dataset":
        return not looks_like_file(name) or find_file(name, folder) is not None
    return not names_a_path(name) or (folder / Path(name).expanduser()).exists()
