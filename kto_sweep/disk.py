"""Checks for free disk space."""

import errno
import shutil
from contextlib import suppress
from pathlib import Path

from kto_sweep.errors import KtoSweepError, is_disk_full

MIN_FREE_BYTES = 200 << 20
"""Free bytes needed to start or resume a trial, for its adapters, checkpoint and logs."""
PROBE_BYTES = 4 << 20
"""Bytes written to test whether the disk accepts them."""


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that contains, or will contain, `folder`."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    """The folder, or its nearest existing parent."""
    while not folder.exists():
        folder = folder.parent
    return folder


def needed_bytes(folder: Path) -> int:
    """Bytes that the trial in `folder` needs, because files are written before old versions are removed."""
    sizes = [0]
    for path in folder.glob("*/*.safetensors"):
        with suppress(OSError):  # removed in the meantime
            sizes.append(path.stat().st_size)
    return MIN_FREE_BYTES + max(sizes)


def shortage(folder: Path) -> str:
    """Why there is not enough space for the trial in `folder`; empty if there is enough."""
    free, needed = free_bytes(folder), needed_bytes(folder)
    if free < needed:
        return f"has {free >> 20} MiB free, needs {needed >> 20} MiB"
    probe = _existing(folder) / "room.probe"  # only a write shows whether a quota is exceeded
    try:
        probe.write_bytes(bytes(PROBE_BYTES))
    except OSError as error:
        if is_disk_full(error) or error.errno == errno.EROFS:
            return f"rejects writes: {error.strerror}"
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return ""


def require_space(folder: Path) -> None:
    """Raise KtoSweepError if there is not enough space to start a trial."""
    free = free_bytes(folder)
    if free < MIN_FREE_BYTES:
        raise KtoSweepError(
            f"{folder}: {free >> 20} MiB free, but a trial needs at least {MIN_FREE_BYTES >> 20} MiB",
            hint="free some space, or set KTO_SWEEP_HOME to a folder on another disk",
        )
