"""The devices of this box, found without loading torch, and locks that reserve each GPU for one agent."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from kto_sweep.errors import UsageError
from kto_sweep.home import Home
from kto_sweep.locks import holder, private_folder, try_lock

ANSWER_SECONDS = 30.0
"""Timeout of nvidia-smi."""


@dataclass(frozen=True)
class Device:
    """The device of one worker."""

    name: str
    """`gpu 0` or `cpu`."""
    visible: str
    """The worker's CUDA_VISIBLE_DEVICES; empty hides every GPU."""
    uuid: str = ""
    """UUID of a GPU; unlike its index, it is the same everywhere."""
    count: int = 1
    """Number of GPUs, or of CPU processes, that train one trial together."""
    indices: tuple[int, ...] = ()
    """Indices of its GPUs in nvidia-smi."""


CPU = Device("cpu", "")


def find_devices(environ: Mapping[str, str], *, gpus: str | None = None, cpu: bool = False) -> list[Device]:
    """The requested GPUs, or all that this process may use; the CPU if there is no GPU.

    `gpus` lists indices or UUIDs, separated by commas, like CUDA_VISIBLE_DEVICES.

    Raises UsageError if a requested GPU does not exist, or if nvidia-smi fails.
    """
    if cpu and gpus is not None:
        raise UsageError("--cpu and --gpus cannot be used together", hint="use one of them")
    if cpu:
        return [CPU]
    limit = environ.get("CUDA_VISIBLE_DEVICES") if gpus is None else None
    text = limit if gpus is None else gpus
    requested = None if text is None else list(takewhile("-1".__ne__, _split(text)))
    if limit is not None and not requested:
        return [CPU]
    present = _gpus_of_box()
    if requested is None or (limit is not None and not present):
        requested = list(present)
    absent = [name for name in requested if name not in present and name not in present.values()]
    if absent or (gpus is not None and not requested):
        has = f"this box has {', '.join(present)}" if present else "this box has no NVIDIA GPU"
        option = f"CUDA_VISIBLE_DEVICES={limit}" if gpus is None else f"--gpus {gpus}"
        raise UsageError(f"{option}: no GPU {', '.join(absent) or 'named'}; {has}", hint="or use --cpu")
    index_by_uuid = {uuid: index for index, uuid in present.items()}
    return [
        Device(f"gpu {name}", name, present.get(name, name), indices=(int(index_by_uuid.get(name, name)),))
        for name in requested
    ] or [CPU]


def grouped(devices: Sequence[Device], size: int) -> list[Device]:
    """The devices in groups of `size`, each as one device; a CPU device can have any size.

    Raises UsageError when devices are left over.
    """
    if devices == [CPU]:
        return [replace(CPU, count=size)]
    if len(devices) % size:
        divisor = next(divisor for divisor in range(size, 0, -1) if len(devices) % divisor == 0)
        raise UsageError(
            f"--gpus-per-trial {size}: cannot divide {len(devices)} GPU{'s' * (len(devices) > 1)} by {size}",
            hint=f"use --gpus-per-trial {divisor}, or choose GPUs with --gpus",
        )
    return [_group(devices[at : at + size]) for at in range(0, len(devices), size)]


def _group(devices: Sequence[Device]) -> Device:
    visible = ",".join(device.visible for device in devices)
    indices = tuple(index for device in devices for index in device.indices)
    return Device(f"gpus {visible}", visible, count=len(devices), indices=indices)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _gpus_of_box() -> dict[str, str]:
    """UUIDs of the NVIDIA GPUs by index. Raises UsageError when nvidia-smi fails, as there may be GPUs."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    query = [tool, "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        answer = _run(query)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _no_answer(str(error)) from error
    output = f"{answer.stdout}{answer.stderr}".strip()
    if "No devices were found" in output:
        return {}
    if answer.returncode:
        raise _no_answer(output or f"exit status {answer.returncode}")
    pairs = (line.split(", ") for line in answer.stdout.splitlines() if ", " in line)
    return {index.strip(): uuid.strip() for index, uuid in pairs}


def _run(query: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run the query; retry once after a timeout, because the driver may be loading."""
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.run(query, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)


def _no_answer(output: str) -> UsageError:
    return UsageError(
        f"nvidia-smi cannot list the GPUs of this box:\n{output}",
        hint="fix the driver, or add --cpu to train without a GPU",
    )


@contextmanager
def lock_devices(devices: Sequence[Device], home: Home) -> Iterator[None]:
    """Lock the GPUs among `devices` until the end of the block, across all homes of a user.

    The locks disappear with the process. Those of other users are not seen: a folder that all users can
    write to would let any of them block the GPUs of the others.
    Raises UsageError when another agent uses one of the GPUs, or a GPU cannot be locked.
    """
    with ExitStack() as stack:
        for device in devices:
            if device.uuid:
                try:
                    path = _lock_folder(home) / f"{device.uuid}.lock"
                    free = stack.enter_context(try_lock(path))
                except OSError as error:
                    raise UsageError(
                        f"could not lock GPU {device.uuid}: {error}",
                        hint="make that folder yours and writable, or add --share-gpus",
                    ) from error
                if not free:
                    raise UsageError(
                        f"{device.name} is in use by another agent (process {holder(path)})",
                        hint="wait until it ends, choose other GPUs with --gpus, or add --share-gpus",
                    )
        yield


def _lock_folder(home: Home) -> Path:
    """The folder of this user's locks. Raises OSError if there is none."""
    # Not XDG_RUNTIME_DIR: a cron or Slurm job has none, and would not see the locks of a login shell.
    with suppress(OSError, RuntimeError):  # a container may have a home folder that is read-only, or none
        return private_folder(Path.home() / ".kto-sweep" / "locks")
    return private_folder(home.root / "locks")
