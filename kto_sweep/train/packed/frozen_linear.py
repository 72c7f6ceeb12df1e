"""Linear layers of the frozen base model that have the same input, as one product."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kto_sweep.train.packed import kernels
from kto_sweep.train.packed.fp8 import E4M3, fp8_input_grad, fp8_product
from kto_sweep.train.packed.kernels import is_4bit, is_fp8


class FrozenLinear:
    """q, k and v, or gate and up, or one layer alone; outputs side by side, in the order of `layers`."""

    def __init__(self, layers: Sequence[Any]) -> None:
        """`layers`: those that `supports` accepts."""
        self.layers: Sequence[Any] = layers
        self.widths = [layer.out_features for layer in layers]
        fp8, packed = is_fp8(layers[0]), is_4bit(layers[0]) or getattr(layers[0], "state", None) is not None
        self._weight = None if packed else _joined([layer.weight for layer in self.layers])
        """(sum of out, in); None for 4-bit weights, which are unpacked in each call."""
        self._scale: Tensor | None = torch.cat([layer.scale for layer in self.layers]) if fp8 else None
        """(sum of out, 1), of weights in FP8."""
        biases = [layer.bias for layer in layers if layer.bias is not None]
        # All or none: q, k and v of Qwen2 have biases, and no family has them on some of a group.
        self._bias = torch.cat([bias.data for bias in biases]) if len(biases) == len(layers) else None

    @staticmethod
    def supports(layers: Sequence[nn.Linear]) -> bool:
        """Whether these can be one product: all of torch's own class, in 4 bit, or in FP8."""
        # Not 8-bit, which rounds its inputs as well: a product with its weight is not what the layer gives.
        # And exactly nn.Linear, since a subclass may compute something else.
        return (
            all(type(layer) is nn.Linear or is_4bit(layer) or is_fp8(layer) for layer in layers)
            and len({(type(layer), layer.in_features, layer.bias is None) for layer in layers}) == 1
        )

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, in) -> (tokens, sum of out), biases included."""
        if self._scale is not None:
            return fp8_product(x, self.weight(E4M3), self._scale, self._bias)
        return F.linear(x, self.weight(x.dtype), self._bias)

    def input_grad(self, grad: Tensor) -> Tensor:
        """Gradient of the input, (tokens, in), from that of the outputs, (tokens, sum of out)."""
        # Frozen weights have no gradient, so this is the layers' whole backward.
        if self._scale is not None:
            return fp8_input_grad(grad, self.weight(E4M3), self._scale)
        return grad @ self.weight(grad.dtype)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """(sum of out, in); 4-bit weights are unpacked: kept, they would be the model in 16 bits."""
        if self._weight is not None:
            return self._weight.view(dtype) if dtype == E4M3 else self._weight
        device = self.layers[0].weight.device
        weight = torch.empty(sum(self.widths), self.layers[0].in_features, dtype=dtype, device=device)
        for layer, rows in zip(self.layers, weight.split(self.widths), strict=True):
            # `.data`: the bytes alone, without bitsandbytes' Parameter class, which reacts to being copied.
            if dtype == E4M3:
                kernels.unpack_4bit(layer.weight.data, layer.state, rows, layer.scale)
            else:
                kernels.unpack_4bit(layer.weight.data, layer.weight.quant_state, rows)
        return weight


def _joined(weights: Sequence[nn.Parameter]) -> Tensor:
    """The weights, (out, in) each, as one (sum of out, in), of which they become views."""
    if len(weights) == 1:
        return weights[0].data
    first, ends_at = weights[0].data, weights[0].data_ptr()
    adjacent = all(weight.is_contiguous() for weight in weights)
    for weight in weights:
        adjacent &= weight.data_ptr() == ends_at
        adjacent &= weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        ends_at += weight.nbytes
    if adjacent:  # an earlier decoder on this model joined them
        rows = sum(weight.shape[0] for weight in weights)
        return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))
    joined = torch.cat([weight.data for weight in weights])
    for weight, rows_of_it in zip(weights, joined.split([len(w) for w in weights]), strict=True):
        weight.data = rows_of_it
    return joined
