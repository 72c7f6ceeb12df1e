"""Elementwise pieces of a decoder layer with their gradients, in one GPU kernel each where Triton is there.

Everywhere else the same in plain torch. Autograd sees none of it: fused.py and head.py have the backwards.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from subprocess import CalledProcessError
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


# Cached: a build that fails would be tried again in every layer.
@cache
def _load_triton(device: torch.device) -> Any:
    """The module of Triton kernels, or None where Triton is not installed or cannot build one."""
    if find_spec("triton") is None:
        return None
    # Here, not at the top: its import needs Triton, which CPU-only boxes do not have.
    module = import_module("kto_sweep.train.packed.triton_kernels")
    try:
        # Triton builds its launchers with the box's C compiler, which may not be there.
        module.swiglu(torch.ones(1, 2, device=device))
    except (ImportError, OSError, RuntimeError, CalledProcessError):
        return None
    return module


def triton_module(x: Tensor) -> Any:
    """The module of Triton kernels where they can run on `x`, or None."""
    return _load_triton(x.device) if x.is_cuda else None


def rms_norm(x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + added, and total / sqrt(mean(total^2) + eps) * weight of it (arXiv 1910.07467).

    x and added: (tokens, n), or without `added` (tokens, heads, n); the results have that shape.
    """
    triton = triton_module(x)
    if triton is not None:
        # The sum of a residual path and the norm of it in one kernel: both are bound by memory.
        result: tuple[Tensor, Tensor] = triton.rms_norm(x, added, weight, eps)
        return result
    total = x if added is None else x + added
    return total, F.rms_norm(total, weight.shape, weight, eps)


def rms_norm_grad(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, out: Tensor
) -> None:
    """Writes to `out` the gradient of x, from `grad` of its norm and `residual` of the path past the norm.

    All of the shape of x, (tokens, n) or (tokens, heads, n); `out` may be `residual`.
    """
    triton = triton_module(x)
    if triton is not None:
        triton.rms_norm_grad(grad, x, weight, eps, residual, out)
        return
    # d(x s) = s dx - x s^3 mean(x dx) for s = 1 / sqrt(mean(x^2) + eps)
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    slope = grad * weight
    result = slope.mul_(scale).sub_(x * (scale.square() * (slope * x).mean(-1, keepdim=True)))
    torch.add(result, residual, out=out) if residual is not None else out.copy_(result)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202): (tokens, 2 n), gate and up side by side, gives (tokens, n)."""
    triton = triton_module(gate_up)
    if triton is not None:
        out: Tensor = triton.swiglu(gate_up)
        return out
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate).mul_(up)  # in place: silu's result is as wide as gate, and used nowhere else


def swiglu_grads(gate_up: Tensor, grad: Tensor) -> None:
    """Replaces gate_up, (tokens, 2 n), by its gradient and `grad`, that of `swiglu`, by its result again."""
    # In place: these are the widest tensors of a layer. And the result is computed again because that is
    # cheaper than keeping it: gate and up are read here anyway.
    triton = triton_module(gate_up)
    if triton is not None:
        triton.swiglu_grads(gate_up, grad)
        return
    gate, up = gate_up.chunk(2, dim=1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    # silu'(g) = s + g s (1 - s) = s (1 + g - g s): one sigmoid serves the gradients and the result.
    slope = (1 + gate - silu).mul_(sigmoid).mul_(up).mul_(grad)
    activated = silu * up
    torch.mul(grad, silu, out=up)
    gate.copy_(slope)
    grad.copy_(activated)


def unpack_4bit(packed: Tensor, state: Any, out: Tensor, row_scales: Tensor | None = None) -> None:
    """Writes to `out` the (out, in) weight that bitsandbytes holds in `packed`, two values in a byte.

    With `row_scales`, (out, 1): divided by them, row by row.
    """
    triton = triton_module(packed)
    if triton is not None and state.nested:  # nested: scales are quantised too, which the kernel relies on
        triton.unpack_4bit(packed, state, out, row_scales)  # in one kernel what bitsandbytes does in three
    else:
        from bitsandbytes.functional import dequantize_4bit  # only models that are loaded in 4 bits need it

        weight = dequantize_4bit(packed, state)
        out.copy_(weight if row_scales is None else weight.float() / row_scales)


def row_scales_4bit(state: Any) -> Tensor:
    """What each row of a 4-bit weight is divided by to fit E4M3: float32 (out, 1).

    `state`: bitsandbytes' QuantState.
    """
    from bitsandbytes.functional import dequantize_blockwise

    blocks = state.absmax
    if state.nested:
        blocks = dequantize_blockwise(blocks, state.state2) + state.offset
    # The largest value of a block of 4-bit weights is its scale.
    largest: Tensor = blocks.float().view(state.shape[0], -1).amax(1, keepdim=True)
    return largest / torch.finfo(torch.float8_e4m3fn).max


def rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, outs: tuple[Tensor, Tensor], *, backward: bool = False
) -> None:
    """Writes to `outs` q and k, (tokens, heads, head dim) each, at their rotary positions (arXiv 2104.09864).

    `cos` and `sin`: (tokens, head dim). With `backward`, the gradients of q and k from those of the result.
    `outs` may be (q, k).
    """
    triton = triton_module(q)
    if triton is not None:
        triton.rotate(q, k, cos, sin, outs, backward=backward)
        return
    cos, sin = cos[:, None], sin[:, None]  # (tokens, 1, head dim): the same angles for every head
    for x, out in zip((q, k), outs, strict=True):
        out.copy_(_rotate(x, cos, sin, backward))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> Tensor:
    """`rotate` of one tensor (tokens, heads, head dim); cos and sin (tokens, 1, head dim)."""
    # transformers pairs feature i with i + head dim / 2, where the paper pairs neighbours.
    if backward:
        # The transpose: sin multiplies before the halves are swapped back, and the other half is negated.
        first, second = (x * sin).chunk(2, dim=-1)
        return x * cos + torch.cat([second, -first], dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def target_log_probs(logits: Tensor, targets: Tensor, *, wants_grad: bool) -> Tensor:
    """log softmax(logits)[target]: float32 (n,), of logits (n, vocabulary) that have a `triton_module`.

    With `wants_grad`, `logits` then holds the gradient of each row's log-prob: a second tensor of that size
    would double the memory of a chunk.
    """
    log_probs: Tensor = triton_module(logits).target_log_probs(logits, targets, wants_grad=wants_grad)
    return log_probs


def is_fp8(layer: nn.Module) -> bool:
    """Whether this is a layer of fp8.py."""
    return type(layer).__name__ == "Fp8Linear"


def is_4bit(layer: nn.Module) -> bool:
    """Whether this is a 4-bit layer of bitsandbytes."""
    return type(layer).__name__ == "Linear4bit"  # by name: bitsandbytes may not be installed


def to_fp8(x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x, (rows, n), in E4M3 with a float32 scale per row, (rows, 1): values * scale is x, rounded.

    With `columns`, (n, 1): of x times these numbers, column by column.
    """
    triton = triton_module(x)
    if triton is not None:
        result: tuple[Tensor, Tensor] = triton.to_fp8(x, columns)
        return result
    wide = x.float() if columns is None else x.float() * columns.t()
    # The floor keeps rows of zeros from dividing by zero.
    scale = wide.abs().amax(1, keepdim=True).clamp(min=1e-12) / torch.finfo(torch.float8_e4m3fn).max
    return (wide / scale).to(torch.float8_e4m3fn), scale


def transposed(x: Tensor) -> Tensor:
    """A contiguous copy of x's transpose; x: (n, m) of one byte each."""
    triton = triton_module(x)
    if triton is not None:
        out: Tensor = triton.transposed(x.view(torch.uint8)).view(x.dtype)
        return out
    return x.t().contiguous()
