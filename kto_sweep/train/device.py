"""The device that a worker trains on."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import torch

from kto_sweep.errors import FailureCause, TrialFailure, is_gpu_error
from kto_sweep.train.room import Memory


class LostProcessError(Exception):
    """A process that trained a trial beside this one is gone, or its device is."""


class Moment:
    """When a device has done all that it was told before this was made."""

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        """`clock`: of the host, in seconds, for a CPU, which has done it by now."""
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(torch.cuda.current_stream(device))
        else:
            self._time = clock()

    def seconds_since(self, earlier: "Moment") -> float:
        """Seconds of the device's time from an earlier moment to this one, once it has come."""
        if self._event is None or earlier._event is None:
            return self._time - earlier._time
        self._event.synchronize()
        seconds: float = earlier._event.elapsed_time(self._event) / 1000
        return seconds


def require_gpus(visible: str) -> None:
    """Raise RuntimeError when a torch that is made for GPUs finds none of those that it is given.

    One that has fallen off the bus would otherwise be replaced by the CPU, in silence.
    """
    if visible and torch.version.cuda is not None and not torch.cuda.is_available():
        raise RuntimeError(f"No CUDA GPUs are available: torch {torch.__version__} cannot use GPU {visible}")


def pick_device() -> torch.device:
    """The GPU that CUDA_VISIBLE_DEVICES leaves this process, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def describe_device() -> str:
    """The device's name for people."""
    if torch.cuda.is_available():
        gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        return f"{torch.cuda.get_device_name(0)}, {gib:.0f} GiB"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'' if threads == 1 else 's'}"


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
    """What this process uses and could use: of the GPU, or of the host's memory on a CPU."""
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
    """Whether `error` says that the device or the host had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")  # torch on a CPU; a library of CUDA's
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def is_broken(error: BaseException) -> bool:
    """Whether `error` came from a device that this process cannot use any more."""
    if is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError | LostProcessError) or is_gpu_error(str(error))


def out_of_memory(error: str) -> TrialFailure:
    """What to tell of a trial that does not fit; `error`: what torch said."""
    return TrialFailure(
        FailureCause.OUT_OF_MEMORY,
        error.partition("\n")[0],
        hint="use a smaller max_length or model, or quantization: 4bit",
    )
