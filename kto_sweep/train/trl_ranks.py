"""The processes that train one trial together, and how the first of them leads the others.

One process is the case of one rank: then nothing is sent.
"""

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
    """This process among those that train a trial."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> "Ranks":
        """The ranks that this process was started among; waits until all are there.

        They are described by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun does.
        """
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @classmethod
    def present(cls) -> "Ranks":
        """The ranks that this process has joined; itself alone if none."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def leads(self) -> bool:
        """Whether this is the first rank, which has the trial's files and its report."""
        return self.rank == 0

    def tell(self, value: T | None = None) -> T:
        """What the first rank gives, in every rank; all call it at the same point."""
        box: list[Any] = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, device=_device())
        found: T = box[0]
        return found

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in every rank; `tensor` is changed."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def share(self, whole: Sequence[T]) -> Sequence[T]:
        """This rank's part; together the ranks have each item once. Empty when there are too few."""
        return whole[self.rank :: self.size]


def _device() -> torch.device:
    """Where a value must lie for the backend to send it."""
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
