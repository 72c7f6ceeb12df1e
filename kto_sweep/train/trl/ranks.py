"""The processes that train one trial together, and the state that they gather.

One process alone is one rank, and sends nothing. State is named

weights/<parameter>     exp_avg/<parameter>     exp_avg_sq/<parameter>     step/<parameter> ...

with sharded parameters gathered, so that a trial can continue with another number of ranks. All ranks must
call these functions at the same point.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

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


def take_weights(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name."""
    return {name: _whole(parameter) for name, parameter in _trained(model).items()}


def take_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Everything that `put_state` needs: weights and optimizer state by name."""
    tensors = {f"weights/{name}": tensor for name, tensor in take_weights(model).items()}
    for name, parameter in _trained(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            # bitsandbytes counts steps as a plain number.
            tensors[f"{key}/{name}"] = _whole(value) if isinstance(value, Tensor) else torch.tensor(value)
    return tensors


@torch.no_grad()
def put_state(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore weights and optimizer from the result of `take_state`."""
    parameters = _trained(model)
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for path, tensor in tensors.items():
        key, _, name = path.partition("/")
        parameter = parameters[name]
        if key == "weights":
            parameter.copy_(_like(parameter, tensor))
        else:
            optimizer.state[parameter][key] = _state_value(parameter, tensor, fused)


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank has a part of the weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # A forward without a backward leaves weights gathered: other tensors than the optimizer's.
            module.reshard()
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _whole(tensor: Tensor) -> Tensor:
    """A copy of the gathered tensor on the host."""
    tensor = tensor.detach()
    whole: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.cpu().clone()


def _state_value(parameter: Tensor, tensor: Tensor, fused: bool) -> Any:
    if tensor.ndim == 0:  # a step count: a number, or a tensor that AdamW keeps on the host unless fused
        if tensor.dtype == torch.int64:
            return int(tensor)
        return tensor.to(parameter.device) if fused else tensor
    return _like(parameter, tensor)


def _like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` on the parameter's device, and sharded as it is if the shapes are equal."""
    if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor.to(parameter.device)
