"""8-bit floating-point products (FP8, E4M3) of the frozen base model: twice the rate of bf16.

    weights      once, at loading: a byte each and a float32 scale per row (output feature); or in 4 bit, and
                 unpacked to that in each product
    activations  in each product: a byte each and a scale per token
    gradients    of the outputs, times the weights' scales: a byte each and a scale per token

Each token has its own scale, so no number depends on the tokens beside it. Products accumulate in float32 and
round once, to the model's precision. Adapters, norms, attention, embedding and output layer stay in bf16. A
policy's, a mismatched and a reference pass all take this path: at step 0 all rewards are 0.
"""

from typing import Any

import torch
from torch import Tensor, nn

from kto_sweep.train.packed import kernels

E4M3 = torch.float8_e4m3fn


class Fp8Linear(nn.Linear):
    """A frozen linear layer that multiplies in FP8; weights are kept in E4M3, or in 4 bit and unpacked."""

    scale: Tensor
    """(out, 1), float32: an E4M3 weight times this is the layer's own weight, rounded."""

    def __init__(self, layer: nn.Linear) -> None:
        """`layer`: torch's own, or a 4-bit one of bitsandbytes with quantised scales."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight: Any = layer.weight
        self.state: Any = weight.quant_state if kernels.is_4bit(layer) else None
        """bitsandbytes' description of 4-bit weights, or None."""
        weight = weight.data
        if self.state is None:
            values, scale = kernels.to_fp8(weight)
            weight = values.view(torch.uint8)
        else:
            scale = kernels.row_scales_4bit(self.state)
        # As bytes: what casts a model's or its adapters' floating point numbers must not touch these.
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def values(self) -> Tensor:
        """The weights in E4M3, (out, in)."""
        if self.state is None:
            return self.weight.data.view(E4M3)
        out = torch.empty(self.out_features, self.in_features, dtype=E4M3, device=self.weight.device)
        kernels.unpack_4bit(self.weight.data, self.state, out, self.scale)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out: Tensor = _Fp8Product.apply(x.reshape(-1, x.shape[-1]), self)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], self.out_features)


class _Fp8Product(torch.autograd.Function):
    """An Fp8Linear outside fused layers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Fp8Linear) -> Tensor:
        """(tokens, in) -> (tokens, out)."""
        ctx.layer = layer
        return fp8_product(x, layer.values(), layer.scale, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Gradient of x, (tokens, in)."""
        return fp8_input_grad(grads[0].contiguous(), ctx.layer.values(), ctx.layer.scale), None


def fp8_product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + bias, (tokens, out), from (tokens, in), (out, in) in E4M3 and its scales, (out, 1)."""
    values, scales = kernels.to_fp8(x)
    return _scaled_product(values, weight.t(), scales, scale.t(), bias, x.dtype)


def fp8_input_grad(grad: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """grad W, (tokens, in), from (tokens, out), (out, in) in E4M3 and its scales, (out, 1)."""
    # The sum is over the rows of W, each with its scale: that goes to the gradient, before it is rounded.
    values, scales = kernels.to_fp8(grad, columns=scale)
    # The kernel wants the second factor's columns adjacent, which for W are its rows in the forward. A copy
    # in each backward is a few milliseconds of a step; a kept one would be as large as the weights.
    columns = kernels.transposed(weight).t()
    ones = torch.ones(1, weight.shape[1], device=grad.device)
    return _scaled_product(values, columns, scales, ones, None, grad.dtype)


def _scaled_product(
    left: Tensor, right: Tensor, left_scale: Tensor, right_scale: Tensor, bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """(n, k) and (k, m) in E4M3, their scales (n, 1) and (1, m) give (n, m)."""
    if left.is_cuda and supports_fp8(left.device):
        return torch._scaled_mm(
            left, right, scale_a=left_scale, scale_b=right_scale.contiguous(), bias=bias, out_dtype=dtype,
            use_fast_accum=True,
        )  # fmt: skip
    # The same rounding, slowly: for tests on a CPU.
    out = ((left.float() * left_scale) @ (right.float() * right_scale)).to(dtype)
    return out if bias is None else out.add_(bias)


def supports_fp8(device: torch.device) -> bool:
    """Whether the GPU multiplies in FP8: Ada, Hopper and later (compute capability 8.9)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def multiply_in_fp8(model: nn.Module, device: torch.device) -> None:
    """Put the model on `device`, with an Fp8Linear in place of each linear layer but the output layer."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if layer is head or not isinstance(layer, nn.Linear):
                continue
            supported = type(layer) is nn.Linear or kernels.is_4bit(layer)
            # Sizes that are no multiple of 16 have no kernel.
            if supported and not (layer.in_features % 16 or layer.out_features % 16):
                setattr(parent, name, Fp8Linear(layer.to(device)))
    model.to(device)
