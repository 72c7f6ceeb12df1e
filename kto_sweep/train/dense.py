"""The matrix of a linear layer as a product wants it: as it lies, or unpacked from 4 bits for the moment."""

from typing import Any

from torch import Tensor, nn

from kto_sweep.train import kernels


def has_matrix(layer: nn.Module) -> bool:
    """Whether `matrix` knows this layer: torch's own or 4-bit; not 8-bit, which rounds its inputs as well."""
    return type(layer) is nn.Linear or is_4bit(layer)


def is_4bit(layer: nn.Module) -> bool:
    """Whether this is a 4-bit layer of bitsandbytes."""
    return type(layer).__name__ == "Linear4bit"


def matrix(layer: nn.Linear) -> Tensor:
    """(out, in) in the model's precision."""
    if type(layer) is nn.Linear:
        return layer.weight
    packed: Any = layer.weight
    dense: Tensor = kernels.unpack_4bit(packed.data, packed.quant_state)
    return dense
