"""Elementwise pieces of a decoder layer with their gradients, in one GPU kernel each where Triton is there.

Everywhere else the same in plain torch. None of it is seen by autograd: train/fused.py has the backwards.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from subprocess import CalledProcessError
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@cache
def _triton(device: torch.device) -> Any:
    """The module of Triton kernels, or None where Triton is not installed or cannot build one."""
    if find_spec("triton") is None:
        return None
    module = import_module("kto_sweep.train.packed.triton_kernels")
    try:
        # Triton builds its launchers with the box's C compiler, which may not be there.
        module.swiglu(torch.ones(1, device=device), torch.ones(1, device=device))
    except (ImportError, OSError, RuntimeError, CalledProcessError):
        return None
    return module


def compiled(x: Tensor) -> Any:
    """The module of Triton kernels where they can run on `x`, or None."""
    return _triton(x.device) if x.is_cuda else None


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202)."""
    triton = compiled(gate)
    if triton is not None:
        out: Tensor = triton.swiglu(gate, up)
        return out
    return F.silu(gate).mul_(up)


def swiglu_grads(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of gate and up, and silu(gate) * up again: cheaper to compute than to keep."""
    triton = compiled(gate)
    if triton is not None:
        grads: tuple[Tensor, Tensor, Tensor] = triton.swiglu_grads(gate, up, grad)
        return grads
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    return grad * up * sigmoid * (1 + gate - silu), grad * silu, silu * up


def unpack_4bit(packed: Tensor, state: Any) -> Tensor:
    """The (out, in) matrix that bitsandbytes holds in `packed`, with its QuantState."""
    triton = compiled(packed)
    out: Tensor
    if triton is not None and state.nested:
        out = triton.unpack_4bit(packed, state)  # in one kernel what bitsandbytes does in three
    else:
        from bitsandbytes.functional import dequantize_4bit  # only models that are loaded in 4 bits need it

        out = dequantize_4bit(packed, state)
    return out


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> tuple[Tensor, Tensor]:
    """Rotary positions (arXiv 2104.09864) on (tokens, heads, head dim), halves paired as transformers does.

    cos and sin of shape (tokens, head dim). With `back`, the gradients of q and k from those of the result.
    """
    q, k, cos, sin = (x.contiguous() for x in (q, k, cos, sin))
    triton = compiled(q)
    if triton is not None:
        rotated: tuple[Tensor, Tensor] = triton.rotate(q, k, cos, sin, back=back)
        return rotated
    cos, sin = cos[:, None], sin[:, None]
    return _rotate(q, cos, sin, back), _rotate(k, cos, sin, back)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    if back:
        first, second = (x * sin).chunk(2, dim=-1)
        return x * cos + torch.cat([second, -first], dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def target_log_probs(logits: Tensor, targets: Tensor, *, wants_grad: bool) -> Tensor:
    """log softmax(logits)[target]: float32 (n,), of a tensor that kernels are `compiled` for.

    With `wants_grad`, `logits` (n, vocabulary) then holds the gradient of each row's log-prob.
    """
    log_probs: Tensor = compiled(logits).target_log_probs(logits, targets, wants_grad=wants_grad)
    return log_probs


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
    dense: Tensor = unpack_4bit(packed.data, packed.quant_state)
    return dense
