"""The type of options and arguments that are paths."""

from pathlib import Path
from typing import Any

import click

from kto_sweep.paths import user_path


class UserPath(click.Path):
    """A path with ~ replaced: shells leave it in `--output=~/x`. Raises UsageError for what cannot be one."""

    def __init__(self, *, exists: bool = False, dir_okay: bool = True) -> None:
        super().__init__(exists=exists, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The Path."""
        return super().convert(user_path(value), param, ctx)
