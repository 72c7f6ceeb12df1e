"""Checks before the first trial starts: the sweep's command, and whether data and models are on this box."""

import os
from pathlib import Path

from kto_sweep.data.hub_data import parse_hub_name
from kto_sweep.data.sources import find_local
from kto_sweep.errors import UsageError
from kto_sweep.models.presets import names_a_path
from kto_sweep.parameter_types import source_names
from kto_sweep.paths import user_path
from kto_sweep.search.space import Space
from kto_sweep.sweep_file.command import SweepCommand, with_flags
from kto_sweep.trial import DATA_PARAMETERS, parameter_name


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
        kind = parameter_name(parameter.path) or ""
        if kind not in (*DATA_PARAMETERS, "model"):
            continue
        missing = [_missing(kind, value, here) for value in parameter.distribution.extremes()]
        if "" in missing:
            continue
        name = missing[0]
        what = "model" if kind == "model" else "data file"
        where = "on this box" if user_path(name).is_absolute() else f"below {here}"
        in_folder = folder and not _missing(kind, name, Path(folder))
        raise UsageError(
            f"{name}: no such {what} {where}; no trial was started",
            hint=f"cd {folder}, then run it again"
            if in_folder
            else "copy it here, or start the agent in its folder",
        )


def _missing(kind: str, value: object, folder: Path) -> str:
    """The first name in a parameter's value that is not below `folder` nor can be on the hub; or empty."""
    for name in source_names(value):
        if kind == "model":
            is_here = not names_a_path(name) or (folder / user_path(name)).exists()
        else:
            is_here = parse_hub_name(name) is not None or bool(find_local(name, (folder,)))
        if not is_here:
            return name
    return ""
