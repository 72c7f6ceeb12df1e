"""The devices of this box, found without loading torch, and the locks that give each GPU to one agent."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from kto_sweep.errors import UsageError
from kto_sweep.locks import holder, try_lock

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
    """The GPUs that were asked for, or all that this process may use; the CPU when there is none.

    `gpus` lists indices or UUIDs, separated by commas, as CUDA_VISIBLE_DEVICES does.

    Raises UsageError when a GPU was asked for that is not there, and when nvidia-smi does not list them.
    """
    if cpu and gpus is not None:
        raise UsageError("--cpu and --gpus exclude each other", hint="give one of them")
    if cpu:
        return [CPU]
    limit = environ.get("CUDA_VISIBLE_DEVICES") if gpus is None else None
    named = limit if gpus is None else gpus
    wanted = None if named is None else list(takewhile("-1".__ne__, _split(named)))
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
            f"--gpus-per-trial {size}: cannot divide {len(devices)} GPU{'s' * (len(devices) > 1)} by {size}",
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
    """Run the query, once more if it takes too long: the driver may be loading."""
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.run(query, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)


def _no_answer(output: str) -> UsageError:
    return UsageError(
        f"nvidia-smi does not list the GPUs of this box:\n{output}",
        hint="repair the driver, or add --cpu to train without a GPU",
    )


@contextmanager
def lock_devices(devices: Sequence[Device]) -> Iterator[None]:
    """Lock the GPUs among `devices` until the end of the block, for all homes of a user.

    The locks vanish with their process. Raises UsageError when another agent has one of the GPUs, or no lock
    can be made.
    """
    folder = Path(tempfile.gettempdir()) / f"kto-sweep-{os.getuid()}"
    with ExitStack() as stack:
        for device in devices:
            if device.uuid:
                path = folder / f"{device.uuid}.lock"
                try:
                    folder.mkdir(mode=0o700, exist_ok=True)
                    free = stack.enter_context(try_lock(path))
                except OSError as error:
                    raise UsageError(
                        f"cannot lock the GPU {device.uuid}: {error}",
                        hint="set TMPDIR to a writable folder, or add --share-gpus",
                    ) from error
                if not free:
                    raise UsageError(
                        f"{device.name} is in use: the agent with process id {holder(path)} trains on it",
                        hint="wait for it, choose another with --gpus, or add --share-gpus",
                    )
        yield
