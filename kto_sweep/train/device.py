"""The device that a worker trains on."""

import os
import resource
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from kto_sweep.errors import FailureCause, TrialFailure, is_gpu_error


class LostProcessError(Exception):
    """A process that trains the same trial has exited, or its device has failed."""


@dataclass(frozen=True)
class Memory:
    """Memory of a process on its device, GiB."""

    used: float
    """Now."""
    peak: float
    """The most so far."""
    limit: float
    """The most that the process can use."""


class DeviceTime:
    """The time at which a device has done all work queued so far."""

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        """`clock`: the host's, in seconds, for a CPU: its work is done by now."""
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            # An event does not wait: the host learns the time later, when the step's numbers are read.
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(torch.cuda.current_stream(device))
        else:
            self._time = clock()

    def seconds_since(self, earlier: "DeviceTime") -> float:
        """Seconds between two device times; waits until the device has reached this one."""
        if self._event is None or earlier._event is None:
            return self._time - earlier._time
        self._event.synchronize()
        seconds: float = earlier._event.elapsed_time(self._event) / 1000
        return seconds


def require_gpus(visible: str) -> None:
    """Raise RuntimeError when torch has CUDA and finds none of the GPUs in `visible`.

    Otherwise a GPU that has fallen off the bus would be silently replaced by the CPU.
    """
    if visible and torch.version.cuda is not None and not torch.cuda.is_available():
        raise RuntimeError(f"No CUDA GPUs are available: torch {torch.__version__} cannot use GPU {visible}")


def pick_device() -> torch.device:
    """The first GPU in CUDA_VISIBLE_DEVICES, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def describe_device() -> str:
    """The device's name for people."""
    if torch.cuda.is_available():
        gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        return f"{torch.cuda.get_device_name(0)}, {gib:.0f} GiB"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'' if threads == 1 else 's'}"


def device_facts(gpus: int = 1) -> dict[str, str | int | float]:
    """The device in a trial's provenance, which is trained on so many `gpus`."""
    if not torch.cuda.is_available():
        return {"threads": torch.get_num_threads()}
    facts: dict[str, str | int | float] = {
        "gpu": torch.cuda.get_device_name(0),
        "gpu_memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        "gpus": gpus,
    }
    with suppress(OSError):  # the kernel module's version is that of the driver
        facts["driver"] = Path("/sys/module/nvidia/version").read_text().strip()
    return facts | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def this_gpu() -> tuple[str, float] | None:
    """Name and GiB of the GPU that this process would train on; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory / 2**30


def gpu_memory(device: torch.device) -> dict[str, float]:
    """`gpu/memory_*` in GiB; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    amounts = {
        "allocated": torch.cuda.memory_allocated(device),
        "peak": torch.cuda.max_memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
    }
    return {f"gpu/memory_{name}_gb": amount / 2**30 for name, amount in amounts.items()}


def read_memory(device: torch.device) -> Memory:
    """This process's memory on `device`: the GPU's, or on a CPU the host's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        used, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        limit = free + torch.cuda.memory_reserved(device)
    else:
        used = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        limit = used + int(available.split()[1]) * 1024
    return Memory(used / 2**30, peak / 2**30, limit / 2**30)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that the device or the host has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")  # torch on a CPU; cuBLAS
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def is_broken(error: BaseException) -> bool:
    """Whether `error` means that this process can no longer use its device."""
    if is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError | LostProcessError) or is_gpu_error(str(error))


def out_of_memory(error: str) -> TrialFailure:
    """The failure of a trial that does not fit; `error`: torch's message."""
    return TrialFailure(
        FailureCause.OUT_OF_MEMORY,
        error.partition("\n")[0],
        hint="use a smaller max_length or model, or quantization: 4bit",
    )
