"""The device that a worker trains on."""

import torch

from kto_sweep.errors import FailureCause, TrialFailure


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
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


def out_of_memory(error: str) -> TrialFailure:
    """What to tell of a trial that does not fit; `error`: what torch said."""
    return TrialFailure(
        FailureCause.OUT_OF_MEMORY,
        error.partition("\n")[0],
        hint="use a smaller max_length or model, or quantization: 4bit",
    )
