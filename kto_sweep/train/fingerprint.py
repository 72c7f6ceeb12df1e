"""What a base model's log-probs depend on, as a short text: its weights and its configuration."""

import hashlib
import json

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

_CHUNK = 2**22
"""Words hashed at once."""

_VOLATILE = {
    "attn_implementation",
    "distributed_config",
    "dtype",
    "name_or_path",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Configuration that log-probs do not depend on, or that the weights tell."""


def fingerprint_model(model: PreTrainedModel) -> str:
    """64 hex digits that change with any bit of any weight and with the configuration, on every device alike.

    Reads every weight once, at the speed of the memory that holds it. Attached adapters are no part of it.
    """
    config = {
        key: value
        for key, value in model.config.to_dict().items()
        if not key.startswith("_") and key not in _VOLATILE
    }
    state = {name: _whole(tensor) for name, tensor in model.state_dict().items()}
    factors = _factors(min(_CHUNK, max(tensor.nbytes for tensor in state.values())), model.device)
    hashes = torch.stack([_hash(tensor, factors) for tensor in state.values()]).tolist()
    described = [
        [name, str(tensor.dtype), list(tensor.shape), number]
        for (name, tensor), number in zip(state.items(), hashes, strict=True)
    ]
    text = json.dumps([_class_name(model), config, described], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _class_name(model: PreTrainedModel) -> str:
    """Of the architecture: a sharded model has a class of its own below that."""
    return next(kind.__name__ for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded over processes; then all of them ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _factors(n: int, device: torch.device) -> Tensor:
    """`n` odd pseudo-random numbers."""
    index = torch.arange(n, device=device)
    return (index * 0x9E3779B97F4A7C1 ^ (index * 0x3C6EF372FE94F82B >> 29)) | 1


@torch.no_grad()
def _hash(tensor: Tensor, factors: Tensor) -> Tensor:
    """A sum of words times odd pseudo-random factors, modulo 2^64: one changed word always changes it."""
    # What describes a 4-bit layer's format lies on the host, whatever device its weights are on.
    data = tensor.detach().to(factors.device).contiguous().view(-1)
    size = data.element_size()
    words = data.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
    total = torch.zeros((), dtype=torch.int64, device=factors.device)
    for chunk in torch.split(words, len(factors)):
        total = total * 0x5851F42D4C957F2D + (chunk.long() * factors[: len(chunk)]).sum()
    return total
