"""The device that a worker trains on."""

import torch


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the device or the host had no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError)
