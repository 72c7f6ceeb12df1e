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
        module.swiglu(torch.ones(1, device=device), torch.ones(1, device=device))
    except (ImportError, OSError, RuntimeError, CalledProcessError):
        return None
    return module


def triton_module(x: Tensor) -> Any:
    """The module of Triton kernels where they can run on `x`, or None."""
    return _load_triton(x.device) if x.is_cuda else None


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202): two tensors of one shape give a third, in their dtype."""
    triton = triton_module(gate)
    if triton is not None:
        out: Tensor = triton.swiglu(gate, up)
        return out
    return F.silu(gate).mul_(up)  # in place: silu's result is as wide as gate, and used nowhere else


def swiglu_grads(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of gate and up from that of `swiglu`, and its result again; all of one shape."""
    # The result is computed again because that is cheaper than keeping it: gate and up are read here anyway.
    triton = triton_module(gate)
    if triton is not None:
        grads: tuple[Tensor, Tensor, Tensor] = triton.swiglu_grads(gate, up, grad)
        return grads
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    # silu'(g) = s + g s (1 - s) = s (1 + g - g s): one sigmoid serves the gradients and the result.
    return grad * up * sigmoid * (1 + gate - silu), grad * silu, silu * up


def unpack_4bit(packed: Tensor, state: Any) -> Tensor:
    """The (out, in) weight that bitsandbytes holds in `packed`, bytes of two values, with its QuantState."""
    triton = triton_module(packed)
    out: Tensor
    if triton is not None and state.nested:  # nested: scales are quantised too, which the kernel relies on
        out = triton.unpack_4bit(packed, state)  # in one kernel what bitsandbytes does in three
    else:
        from bitsandbytes.functional import dequantize_4bit  # only models that are loaded in 4 bits need it

        out = dequantize_4bit(packed, state)
    return out


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, backward: bool) -> tuple[Tensor, Tensor]:
    """Rotary positions (arXiv 2104.09864) on q and k, (tokens, heads, head dim) each.

    `cos` and `sin`: (tokens, head dim). With `backward`, the gradients of q and k from those of the result.
    """
    # q and k arrive as views, and gradients in any layout; the kernel computes addresses from shapes alone.
    q, k, cos, sin = (x.contiguous() for x in (q, k, cos, sin))
    triton = triton_module(q)
    if triton is not None:
        rotated: tuple[Tensor, Tensor] = triton.rotate(q, k, cos, sin, backward=backward)
        return rotated
    cos, sin = cos[:, None], sin[:, None]  # (tokens, 1, head dim): the same angles for every head
    return _rotate(q, cos, sin, backward), _rotate(k, cos, sin, backward)


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


def has_dense_weight(layer: nn.Module) -> bool:
    """Whether `dense_weight` supports this layer: torch's own or 4-bit."""
    # Not 8-bit, which rounds its inputs as well: a product with its weight is not what the layer gives. And
    # exactly nn.Linear, since a subclass may compute something else.
    return type(layer) is nn.Linear or is_4bit(layer)


def is_4bit(layer: nn.Module) -> bool:
    """Whether this is a 4-bit layer of bitsandbytes."""
    return type(layer).__name__ == "Linear4bit"  # by name: bitsandbytes may not be installed


def dense_weight(layer: nn.Linear) -> Tensor:
    """The layer's weight, (out, in), in the model's precision; a 4-bit one is unpacked in each call."""
    if type(layer) is nn.Linear:
        return layer.weight
    packed: Any = layer.weight
    # `.data`: the bytes alone, without bitsandbytes' Parameter class, which reacts to being moved or copied.
    dense: Tensor = unpack_4bit(packed.data, packed.quant_state)
    return dense
