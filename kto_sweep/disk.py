"""Whether there is room on the disk."""

import errno
import shutil
from contextlib import suppress
from pathlib import Path

from kto_sweep.errors import KtoSweepError, is_disk_full

ENOUGH = 200 << 20
"""Bytes that a trial finds free before it is begun or goes on: its adapters, checkpoint and logs."""
PROBE = 4 << 20
"""Bytes that are written to see whether they can be."""


def free_bytes(folder: Path) -> int:
    """What is free where `folder` is, or will be."""
    return shutil.disk_usage(_nearest(folder)).free


def _nearest(folder: Path) -> Path:
    """The folder, or the one in which it will be."""
    while not folder.exists():
        folder = folder.parent
    return folder


def needed_bytes(folder: Path) -> int:
    """What the trial in `folder` needs: files are replaced as a whole, so one more of its largest."""
    sizes = [0]
    for path in folder.glob("*/*.safetensors"):
        with suppress(OSError):  # removed meanwhile
            sizes.append(path.stat().st_size)
    return ENOUGH + max(sizes)


def shortage(folder: Path) -> str:
    """Why the trial in `folder` cannot be begun or go on now; empty when there is room."""
    free, needed = free_bytes(folder), needed_bytes(folder)
    if free < needed:
        return f"has {free >> 20} MiB free, {needed >> 20} MiB are needed"
    probe = _nearest(folder) / "room.probe"  # nothing else tells of a quota
    try:
        probe.write_bytes(bytes(PROBE))
    except OSError as error:
        if is_disk_full(error) or error.errno == errno.EROFS:
            return f"takes no more: {error.strerror}"
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return ""


def require_space(folder: Path) -> None:
    """Raise KtoSweepError when no trial could be begun."""
    free = free_bytes(folder)
    if free < ENOUGH:
        raise KtoSweepError(
            f"{folder}: {free >> 20} MiB are free on this disk, and a trial needs {ENOUGH >> 20} MiB or more",
            hint="free some space, or set KTO_SWEEP_HOME to a folder on another disk",
        )
