"""The devices of this box, found without loading torch."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from kto_sweep.errors import UsageError

ANSWER_SECONDS = 30.0
"""For nvidia-smi."""


@dataclass(frozen=True)
class Device:
    """What one worker is given."""

    name: str
    """`gpu 0` or `cpu`."""
    visible: str
    """The worker's CUDA_VISIBLE_DEVICES; empty hides every GPU."""
    uuid: str = ""
    """Of a GPU, whatever its index is elsewhere."""
    count: int = 1
    """GPUs in it, or processes on the CPU: all of them train one trial."""


CPU = Device("cpu", "")


def find_devices(environ: Mapping[str, str], *, gpus: str | None = None, cpu: bool = False) -> list[Device]:
    """The GPUs that are asked for, or all that this process may use; the CPU when there is none.

    `gpus` lists indices or UUIDs, separated by commas, as CUDA_VISIBLE_DEVICES does.

    Raises UsageError when a GPU is asked for that is not there, and when nvidia-smi cannot tell which are.
    """
    if cpu and gpus is not None:
        raise UsageError("--cpu and --gpus exclude each other", hint="give one of them")
    if cpu:
        return [CPU]
    limit = environ.get("CUDA_VISIBLE_DEVICES") if gpus is None else None
    told = limit if gpus is None else gpus
    wanted = None if told is None else list(takewhile("-1".__ne__, _split(told)))
    if limit is not None and not wanted:
        return [CPU]
    present = _gpus_of_box()
    if wanted is None or (limit is not None and not present):
        wanted = list(present)
    absent = [name for name in wanted if name not in present and name not in present.values()]
    if absent or (gpus is not None and not wanted):
        has = f"this box has {', '.join(present)}" if present else "this box has no NVIDIA GPU"
        option = f"CUDA_VISIBLE_DEVICES={limit}" if gpus is None else f"--gpus {gpus}"
        raise UsageError(f"{option}: no GPU {', '.join(absent) or 'named'}; {has}", hint="or use --cpu")
    return [Device(f"gpu {name}", name, present.get(name, name)) for name in wanted] or [CPU]


def grouped(devices: Sequence[Device], size: int) -> list[Device]:
    """`size` of the devices as one, in their order; the CPU counts as any number of them.

    Raises UsageError when some are left over.
    """
    if devices == [CPU]:
        return [replace(CPU, count=size)]
    if len(devices) % size:
        wanted = next(wanted for wanted in range(size, 0, -1) if len(devices) % wanted == 0)
        raise UsageError(
            f"--gpus-per-trial {size}: {len(devices)} GPU{'s' * (len(devices) > 1)} cannot be shared out so",
            hint=f"use --gpus-per-trial {wanted}, or choose GPUs with --gpus",
        )
    groups = [devices[at : at + size] for at in range(0, len(devices), size)]
    return [
        Device(f"gpus {visible}", visible, count=size)
        for visible in (",".join(device.visible for device in group) for group in groups)
    ]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _gpus_of_box() -> dict[str, str]:
    """UUIDs of the NVIDIA GPUs, by index. Raises UsageError when nvidia-smi fails: there may be some."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    query = [tool, "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        asked = _run(query)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _no_answer(str(error)) from error
    told = f"{asked.stdout}{asked.stderr}".strip()
    if "No devices were found" in told:
        return {}
    if asked.returncode:
        raise _no_answer(told or f"exit status {asked.returncode}")
    pairs = (line.split(", ") for line in asked.stdout.splitlines() if ", " in line)
    return {index.strip(): uuid.strip() for index, uuid in pairs}


def _run(query: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Once more when it takes too long: the driver may be loading."""
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.run(query, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)


def _no_answer(told: str) -> UsageError:
    return UsageError(
        f"nvidia-smi cannot tell which GPUs this box has:\n{told}",
        hint="mend the driver, or add --cpu to train without a GPU",
    )
