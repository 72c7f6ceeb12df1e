"""The product x A^T B of many adapters at once: tokens sorted by slot, each slot with its own A and B.

Gradients of A and B are added directly to the engine's float32 gradient buffers. Autograd does not know A and
B, so adapters cost no casts, no accumulation kernels and no second copy of their gradients.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kto_sweep.train.packed import kernels
from kto_sweep.train.packed.pack import to_device

TILE = 64
"""Tokens of one block of the kernel behind `add_low_rank`."""
_MOST_ROWS = 256
"""The largest rank that this kernel can hold in shared memory."""


@dataclass(frozen=True)
class TokenRouting:
    """Which tokens of a forward pass through which slot's adapters."""

    spans: list[tuple[int, int, int]]
    """(slot, first token, end) of the slots that have tokens."""
    ends: Tensor
    """End of each slot's tokens: int32 (slots,)."""
    noise: Tensor | None = None
    """Dropout key of each token: int32 (tokens, 1); None without dropout."""
    threshold: Tensor | None = None
    """Dropout probability of each token times 2^31: int32 (tokens, 1)."""
    scale: Tensor | None = None
    """1 / (1 - dropout probability) of each token: (tokens, 1)."""

    @cached_property
    def neighbours(self) -> slice | None:
        """The slots with tokens as a slice, if no empty slot is between them; else None.

        Grouped kernels must not see an empty group: on some GPUs its gradient is garbage (pytorch issue
        172439).
        """
        slots = [slot for slot, _, _ in self.spans]
        return slice(slots[0], slots[-1] + 1) if slots[-1] - slots[0] == len(slots) - 1 else None

    @cached_property
    def tiles(self) -> Tensor:
        """(slot, first token, end) of every tile of at most TILE tokens of one slot: int32 (tiles, 3)."""
        # No tile crosses slots: within a block of the kernel all tokens use the same matrix.
        tiles = [(slot, at, end) for slot, start, end in self.spans for at in range(start, end, TILE)]
        flat = to_device({"tiles": np.asarray(tiles).reshape(-1)}, self.ends.device, torch.int32)["tiles"]
        return flat.view(-1, 3)


@dataclass(frozen=True)
class AdaptedLayer:
    """The adapters of one linear layer, views of the engine's buffers."""

    name: str
    a: Tensor
    """A times alpha / rank, (slots, rank, in), in the model's precision."""
    b: Tensor
    """(slots, rank, out), in the model's precision."""
    a_grad: Tensor
    """(slots, rank, in), float32."""
    b_grad: Tensor
    """(slots, rank, out), float32."""
    feature_noise: Tensor
    """Dropout key of each input feature: int32 (in,)."""


@dataclass(frozen=True)
class AdapterGroup:
    """The adapters of layers with the same input (q, k, v; gate, up), with all A in one matrix.

    Layers without adapters are left out: with lora_targets [q_proj, v_proj] there are two of three.
    """

    a: Tensor
    """(slots, layers * rank, in)"""
    a_grad: Tensor
    b: list[Tensor]
    """(slots, rank, out) of each layer"""
    b_grad: list[Tensor]
    columns: list[tuple[int, int]]
    """Where each of these layers' outputs begin and end among those of all layers with this input."""

    @property
    def rank(self) -> int:
        """Rows of A of one layer."""
        return self.a.shape[1] // len(self.b)


def add_adapters(y: Tensor, x: Tensor, group: AdapterGroup, route: TokenRouting) -> Tensor:
    """Add the adapters' products to y, (tokens, sum of out); gives x A^T, (tokens, layers * rank).

    x: (tokens, in). x A^T is small, and saves the backward a product with x.
    """
    # One product for all layers of the group: x is read once, and small ranks fill the GPU better together.
    low = per_slot(x, group.a.transpose(1, 2), route)
    for part, (start, end), b in zip(low.split(group.rank, dim=1), group.columns, group.b, strict=True):
        # In place: (tokens, out) once, where a separate adapter output would need a tensor and an addition.
        add_low_rank(y[:, start:end], part, b, route)
    return low


def adapters_backward(grad: Tensor, low: Tensor, group: AdapterGroup, route: TokenRouting) -> Tensor:
    """Gradient of x A^T, (tokens, layers * rank), from that of all outputs; adds those of B to their buffers.

    `grad`: (tokens, sum of out); `low`: what `add_adapters` gave.
    """
    parts = []
    for part, (start, end), b, b_grad in zip(
        low.split(group.rank, dim=1), group.columns, group.b, group.b_grad, strict=True
    ):
        own = grad[:, start:end]
        parts.append(per_slot(own, b.transpose(1, 2), route))
        add_outer(b_grad, part, own, route)  # into the buffer: autograd never sees B
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def add_low_rank(y: Tensor, low: Tensor, matrices: Tensor, route: TokenRouting) -> None:
    """y (tokens, m) += low (tokens, n) @ the slot's matrix, of `matrices` (slots, n, m)."""
    if len(route.spans) > 1 and y.dtype != torch.float32 and matrices.shape[1] <= _MOST_ROWS:
        # One kernel for all slots, and it adds: a grouped product would write (tokens, m) and read it again.
        triton = kernels.triton_module(y)
        if triton is not None:
            triton.add_low_rank(y, low, matrices, route.tiles, TILE)
            return
    # float32 stays here: the kernel's products are in tensor-core precision.
    for slot, start, end in route.spans:
        y[start:end].addmm_(low[start:end], matrices[slot])


class AdapterProduct(torch.autograd.Function):
    """x A^T B, slot by slot: (tokens, in) -> (tokens, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _anchor: Tensor, site: AdaptedLayer, route: TokenRouting) -> Tensor:
        """(tokens, in) -> (tokens, out). `_anchor` only makes the result require a gradient."""
        low = per_slot(_drop(x, site, route), site.a.transpose(1, 2), route)
        # x without dropout: the mask is a hash and is computed again, so no second (tokens, in) is kept.
        ctx.save_for_backward(x, low)
        ctx.site, ctx.route = site, route
        return per_slot(low, site.b, route)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        """Gradient of x, (tokens, in); adds those of A and B to their buffers."""
        site, route = ctx.site, ctx.route
        x, low = ctx.saved_tensors
        grad = grads[0].contiguous()  # grouped kernels read rows
        low_grad = per_slot(grad, site.b.transpose(1, 2), route)
        add_outer(site.b_grad, low, grad, route)
        add_outer(site.a_grad, low_grad, _drop(x, site, route), route)
        # The first adapted layer's input needs no gradient: the embeddings are frozen.
        x_grad = _drop(per_slot(low_grad, site.a, route), site, route) if ctx.needs_input_grad[0] else None
        return x_grad, None, None, None


def adapter_product(x: Tensor, anchor: Tensor, site: AdaptedLayer, route: TokenRouting) -> Tensor:
    """`AdapterProduct` on (..., in) -> (..., out), in the adapters' precision."""
    # Some models keep float32 activations between bf16 layers.
    flat = x.reshape(-1, x.shape[-1]).to(site.a.dtype)
    out: Tensor = AdapterProduct.apply(flat, anchor, site, route)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], out.shape[-1])


def per_slot(x: Tensor, matrices: Tensor, route: TokenRouting) -> Tensor:
    """Each token times its slot's matrix: (tokens, n) and (slots, n, m) -> (tokens, m)."""
    if len(route.spans) == 1:  # one trial: a plain product, also of trials whose slot is not the first
        return x @ matrices[route.spans[0][0]]
    if route.neighbours is not None and _has_grouped_kernel(x, matrices):
        return F.grouped_mm(x, matrices[route.neighbours], offs=route.ends[route.neighbours])
    # One product per slot: the host launches more kernels, so only where no grouped one exists.
    out = x.new_empty(x.shape[0], matrices.shape[2])
    for slot, start, end in route.spans:
        torch.mm(x[start:end], matrices[slot], out=out[start:end])
    return out


def add_outer(sums: Tensor, left: Tensor, right: Tensor, route: TokenRouting) -> None:
    """Add left^T right of each slot's tokens to `sums`: (tokens, m), (tokens, n) into (slots, m, n)."""
    if len(route.spans) > 1 and route.neighbours is not None and _has_grouped_kernel(left, right):
        sums[route.neighbours].add_(F.grouped_mm(left.t(), right, offs=route.ends[route.neighbours]))
        return
    for slot, start, end in route.spans:
        if left.dtype == sums.dtype:  # float32, on a CPU: add in the product itself
            sums[slot].addmm_(left[start:end].t(), right[start:end])
        elif left.is_cuda:
            # bf16 factors, added in float32: small gradients of many micro-batches would be lost in bf16.
            into = sums[slot]
            torch.ops.aten.addmm.dtype_out(
                into, left[start:end].t(), right[start:end], torch.float32, out=into
            )
        else:
            sums[slot].add_(left[start:end].t() @ right[start:end])


def _has_grouped_kernel(*tensors: Tensor) -> bool:
    """Whether torch has a grouped matmul kernel for these; its fallback waits for the device."""
    return all(
        x.is_cuda and x.dtype == torch.bfloat16 and x.shape[-1] % 8 == 0 and _is_datacentre_gpu(x.device)
        for x in tensors
    )


@cache
def _is_datacentre_gpu(device: torch.device) -> bool:
    """Hopper or data-centre Blackwell: consumer Blackwell (12.x) has no such kernel."""
    return torch.cuda.get_device_capability(device)[0] in (9, 10)


def _drop(x: Tensor, site: AdaptedLayer, route: TokenRouting) -> Tensor:
    """Dropout on (tokens, in): some features are zeroed, the others scaled up. Linear, so its own gradient.

    Whether a feature is kept is a hash of the token's key and the feature's key. So it depends on trial,
    step, row, position and layer only: not on neighbours, micro-batches or recomputation, and no mask is
    stored.
    """
    if route.noise is None or route.threshold is None or route.scale is None:
        return x
    # A 32-bit integer hash: multiplications and shifts, which run on the device as elementwise kernels. The
    # masks after the shifts: int32 shifts right with sign.
    bits = (route.noise ^ site.feature_noise) * 0x2C1B3C6D
    bits ^= (bits >> 15) & 0x1FFFF
    bits *= 0x297A2D39
    bits ^= (bits >> 16) & 0xFFFF
    kept = (bits & 0x7FFFFFFF) >= route.threshold
    return x * (kept * route.scale).to(x.dtype)
