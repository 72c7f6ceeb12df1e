"""Paths that a user wrote: in an option, an environment variable or a sweep file."""

import os
from pathlib import Path

from kto_sweep.errors import UsageError
from kto_sweep.text import show

MAX_NAME_BYTES = 255
"""Of one part of a path; Linux refuses longer ones."""
MAX_PATH_BYTES = 3000
"""Of a path from the root: those of the files in a folder must stay below Linux's 4,096."""


def user_path(name: str | os.PathLike[str]) -> Path:
    """The path with ~ and ~USER replaced; what it names need not exist.

    Raises UsageError for what cannot be a path on this machine.
    """
    text = os.fspath(name)
    try:
        path = Path(text).expanduser()
        size = len(os.fsencode(path.absolute()))
    except RuntimeError as error:  # ~USER without such a user
        raise UsageError(f"{show(text)}: no such user", hint="write the path without ~") from error
    except FileNotFoundError as error:
        raise UsageError("the current folder was deleted", hint="cd to another folder") from error
    except UnicodeError as error:
        raise UsageError(f"{show(text)}: not text that a path can have", hint="check the path") from error
    if "\0" in text:
        raise UsageError(f"{show(text)}: a path has no null characters", hint="check the path")
    if any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in path.parts):
        raise UsageError(
            f"{show(text)}: a name of more than {MAX_NAME_BYTES} bytes", hint="use shorter names"
        )
    if size > MAX_PATH_BYTES:
        raise UsageError(
            f"{show(text)}: a path of {size:,} bytes from the root",
            hint=f"use one of at most {MAX_PATH_BYTES:,}",
        )
    return path


def resolved(name: str | os.PathLike[str]) -> Path:
    """`user_path` from the root, without symbolic links. Raises UsageError."""
    path = user_path(name)
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links that form a circle
        raise UsageError(f"{show(str(name))}: links that form a circle", hint="remove them") from error
