"""The trainable weights and optimizer state of a TRL trial, as tensors on the host.

weights/<parameter>     exp_avg/<parameter>     exp_avg_sq/<parameter>     step/<parameter> ...

Sharded parameters are gathered, so that a trial can continue with another number of ranks. All ranks must
call these functions at the same point.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


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
