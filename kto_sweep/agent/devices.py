"""The devices of this box, found without loading torch."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from kto_sweep.errors import UsageError


@dataclass(frozen=True)
class Device:
    """What one worker is given."""

    name: str
    """`gpu 0` or `cpu`."""
    visible: str
    """The worker's CUDA_VISIBLE_DEVICES; empty hides every GPU."""
    uuid: str = ""
    """Of a GPU, whatever its index is elsewhere."""


CPU = Device("cpu", "")


def find_devices(environ: Mapping[str, str], *, gpus: str | None = None, cpu: bool = False) -> list[Device]:
    """The GPUs that are asked for, or all that this process may use; the CPU when there is none.

    `gpus` lists indices or UUIDs, separated by commas, as CUDA_VISIBLE_DEVICES does.

    Raises UsageError when a GPU is asked for that is not there.
    """
    if cpu and gpus is not None:
        raise UsageError("--cpu and --gpus exclude each other", hint="give one of them")
    if cpu:
        return [CPU]
    present = _gpus_of_box()
    if gpus is None:
        limit = environ.get("CUDA_VISIBLE_DEVICES")
        wanted = _split(limit) if limit is not None else list(present)
        wanted = [name for name in wanted if name in present or name in present.values()]
    else:
        wanted = _split(gpus)
        absent = [name for name in wanted if name not in present and name not in present.values()]
        if absent or not wanted:
            has = f"this box has {', '.join(present)}" if present else "this box has no NVIDIA GPU"
            raise UsageError(
                f"--gpus {gpus}: no GPU {', '.join(absent) or 'named'}; {has}", hint="or use --cpu"
            )
    return [Device(f"gpu {name}", name, present.get(name, name)) for name in wanted] or [CPU]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _gpus_of_box() -> dict[str, str]:
    """UUIDs of the NVIDIA GPUs, by index."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    query = [tool, "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    pairs = (line.split(", ") for line in listed.splitlines() if ", " in line)
    return {index.strip(): uuid.strip() for index, uuid in pairs}
