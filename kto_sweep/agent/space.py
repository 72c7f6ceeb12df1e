"""Whether there is room on the disk."""

import shutil
from contextlib import suppress
from pathlib import Path

from kto_sweep.errors import KtoSweepError

ENOUGH = 200 << 20
"""Bytes that a trial finds free before it is begun or goes on: its adapters, checkpoint and logs."""


def free_bytes(folder: Path) -> int:
    """What is free where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def needed_bytes(folder: Path) -> int:
    """What the trial in `folder` needs: files are replaced as a whole, so one more of its largest."""
    sizes = [0]
    for path in folder.glob("*/*.safetensors"):
        with suppress(OSError):  # removed meanwhile
            sizes.append(path.stat().st_size)
    return ENOUGH + max(sizes)


def require_space(folder: Path) -> None:
    """Raise KtoSweepError when no trial could be begun."""
    free = free_bytes(folder)
    if free < ENOUGH:
        raise KtoSweepError(
            f"{folder}: {free >> 20} MiB are free on this disk, and a trial needs {ENOUGH >> 20} MiB or more",
            hint="free some space, or set KTO_SWEEP_HOME to a folder on another disk",
        )
