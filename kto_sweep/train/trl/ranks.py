"""The processes that train one trial together. One process alone is one rank, and sends nothing."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among them."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> "Ranks":
        """Join the ranks described by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as with torchrun.

        Blocks until all have joined.
        """
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @classmethod
    def current(cls) -> "Ranks":
        """The ranks that this process has joined; one rank without any."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def is_first(self) -> bool:
        """Whether this is the first rank, which writes the trial's files and reports."""
        return self.rank == 0

    def broadcast(self, value: T | None = None) -> T:
        """The first rank's `value`, in every rank. All ranks must call it at the same point."""
        box: list[Any] = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, device=_device())
        received: T = box[0]
        return received

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in every rank; changes `tensor`."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def share(self, whole: Sequence[T]) -> Sequence[T]:
        """This rank's part of the items; empty when there are fewer items than ranks."""
        return whole[self.rank :: self.size]


def _device() -> torch.device:
    """The device from which the backend can send a value."""
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
