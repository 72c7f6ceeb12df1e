"""Elementwise work of a step on a GPU, each piece in one kernel.

Imported where Triton is installed and a tensor is on a GPU; kernels.py has the same in plain torch.

All kernels load tensors in the model's precision, compute or accumulate in float32 and round once, at the
store: a chain of torch operations in bfloat16 rounds after each, and writes each result to memory.
"""

# mypy: ignore-errors
# (The body of a kernel is Triton's language, not Python's.)

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 2048
"""Elements of one program of an elementwise kernel; bytes, in the unpacking of 4-bit weights."""
ROW_BLOCK = 8192
"""Logits of a row that one program holds at once."""
TILE_COLUMNS = 128
"""Columns of one tile of `add_low_rank`."""


@triton.jit
def _swiglu(gate, up, out, n, SIZE: tl.constexpr):
    """out = silu(gate) * up for SIZE of n elements."""
    # 64-bit: 120,000 tokens of a 7B model's MLP (18,944 wide) are more than 2^31 elements.
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = at < n
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (g * tl.sigmoid(g) * u).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_grads(gate, up, grad, gate_grad, up_grad, out, n, SIZE: tl.constexpr):
    """Both gradients and out = silu(gate) * up, for SIZE of n elements, from one read of each input."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = at < n
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(g)
    silu = g * sigmoid
    kind = out.dtype.element_ty
    # silu'(g) = s + g s (1 - s) = s (1 + g - g s): the sigmoid is computed once for all three results.
    tl.store(gate_grad + at, (d * u * sigmoid * (1 + g - silu)).to(kind), mask=inside)
    tl.store(up_grad + at, (d * silu).to(kind), mask=inside)
    tl.store(out + at, (silu * u).to(kind), mask=inside)


@triton.jit
def _rotate_heads(
    x,
    out,
    row,
    cos1,
    cos2,
    sin1,
    sin2,
    HEADS: tl.constexpr,
    PADDED: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    BACK: tl.constexpr,
):
    """Rotates all heads of token `row`: x and out (tokens, HEADS, 2 * HALF), angles (1, HALF_PADDED) each."""
    # tl.arange takes powers of 2 only: heads and halves are padded, and `inside` masks the padding.
    head = tl.arange(0, PADDED)[:, None]
    place = tl.arange(0, HALF_PADDED)[None, :]
    at = (row * HEADS + head) * (2 * HALF) + place
    inside = (head < HEADS) & (place < HALF)
    x1 = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    # transformers pairs feature i with i + HALF, so both halves of a head are loaded by the same program.
    x2 = tl.load(x + at + HALF, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        # The transpose of the 2 x 2 matrix below. It does not assume that cos and sin repeat in both halves.
        y1 = x1 * cos1 + x2 * sin2
        y2 = x2 * cos2 - x1 * sin1
    else:
        y1 = x1 * cos1 - x2 * sin1
        y2 = x2 * cos2 + x1 * sin2
    tl.store(out + at, y1.to(out.dtype.element_ty), mask=inside)
    tl.store(out + at + HALF, y2.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rotate(
    q,
    k,
    q_out,
    k_out,
    cos,
    sin,
    QH: tl.constexpr,
    QP: tl.constexpr,
    KH: tl.constexpr,
    KP: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    BACK: tl.constexpr,
):
    """Rotates q and k of one token; QH and KH heads, QP and KP padded to powers of 2."""
    # One program per token: its angles are loaded once for all heads of q and k.
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, HALF_PADDED)[None, :]
    at = row * (2 * HALF) + place
    inside = place < HALF
    cos1 = tl.load(cos + at, mask=inside, other=0.0).to(tl.float32)
    cos2 = tl.load(cos + at + HALF, mask=inside, other=0.0).to(tl.float32)
    sin1 = tl.load(sin + at, mask=inside, other=0.0).to(tl.float32)
    sin2 = tl.load(sin + at + HALF, mask=inside, other=0.0).to(tl.float32)
    _rotate_heads(q, q_out, row, cos1, cos2, sin1, sin2, QH, QP, HALF, HALF_PADDED, BACK)
    _rotate_heads(k, k_out, row, cos1, cos2, sin1, sin2, KH, KP, HALF, HALF_PADDED, BACK)


@triton.jit
def _add_low(
    y,
    low,
    matrices,
    tiles,
    n,
    y_row,
    low_row,
    slot_size,
    matrix_row,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """y += low @ matrices[slot] for one tile: ROWS tokens of one slot, COLUMNS of the n columns of y."""
    # Tiles never cross from one slot to the next, so each has one matrix; `end` cuts a slot's last tile.
    tile = tl.program_id(1)
    slot = tl.load(tiles + 3 * tile).to(tl.int64)
    start = tl.load(tiles + 3 * tile + 1).to(tl.int64)
    end = tl.load(tiles + 3 * tile + 2)
    rows = (start + tl.arange(0, ROWS))[:, None]
    columns = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    down = tl.arange(0, PADDED)[:, None]
    across = tl.arange(0, PADDED)[None, :]
    # `low` may be some columns of a wider tensor: its rows are low_row apart, not RANK.
    # Padding loads zeros, which add nothing to the product.
    left = tl.load(low + rows * low_row + across, mask=(rows < end) & (across < RANK), other=0.0)
    right = tl.load(
        matrices + slot * slot_size + down * matrix_row + columns,
        mask=(down < RANK) & (columns < n),
        other=0.0,
    )
    at = y + rows * y_row + columns
    inside = (rows < end) & (columns < n)
    # Reads and writes y once. torch's grouped product cannot add to its output: it would take another
    # (tokens, n) tensor and an addition.
    before = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, (before + tl.dot(left, right)).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _target_log_probs(logits, targets, out, n, SIZE: tl.constexpr, GRAD: tl.constexpr):
    """log softmax(logits)[target] of one row of n logits; with GRAD its gradient replaces the row."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * n
    target = tl.load(targets + row)
    wanted = tl.load(logits + target).to(tl.float32)
    places = tl.arange(0, SIZE)
    # Maximum and sum of exponentials in one pass (online softmax, arXiv 1805.02867): whenever the maximum
    # rises, the sum so far is scaled to it. A pass for the maximum alone would read the row once more.
    largest = float("-inf")
    total = 0.0
    for start in range(0, n, SIZE):
        # -inf past the row's end: exp makes it 0 in the sum.
        x = tl.load(logits + start + places, mask=start + places < n, other=float("-inf")).to(tl.float32)
        top = tl.maximum(largest, tl.max(x, axis=0))
        total = total * tl.exp(largest - top) + tl.sum(tl.exp(x - top), axis=0)
        largest = top
    tl.store(out + row, wanted - largest - tl.log(total))
    if GRAD:
        tl.debug_barrier()  # every thread has read the target's logit before it is written over
        for start in range(0, n, SIZE):
            at = start + places
            x = tl.load(logits + at, mask=at < n, other=float("-inf")).to(tl.float32)
            # d log p_target / d logit_j = [j = target] - p_j
            slope = tl.where(at == target, 1.0, 0.0) - tl.exp(x - largest) / total
            tl.store(logits + at, slope.to(logits.dtype.element_ty), mask=at < n)


@triton.jit
def _unpack_4bit(
    packed, out, code, scales, scale_code, outer_scales, mean, n,
    BLOCK: tl.constexpr, OUTER: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Unpacks SIZE of n bytes into 2 * SIZE values; BLOCK values per scale, OUTER scales per outer scale."""
    start = tl.program_id(0).to(tl.int64) * SIZE
    at = start + tl.arange(0, SIZE)
    byte = tl.load(packed + at, mask=at < n, other=0).to(tl.int32)
    block = at // (BLOCK // 2)  # BLOCK counts values, two in a byte
    inner = tl.load(scales + block, mask=at < n, other=0).to(tl.int32)
    outer = tl.load(outer_scales + block // OUTER, mask=at < n, other=0.0)
    # Double quantisation: scales are bytes too, and `mean`, subtracted before, centres them on their code.
    scale = tl.load(scale_code + inner) * outer + tl.load(mean)
    # bitsandbytes packs the earlier of two values in the high half; `code` holds the 16 values that exist.
    values = tl.interleave(tl.load(code + (byte >> 4)) * scale, tl.load(code + (byte & 15)) * scale)
    into = 2 * start + tl.arange(0, 2 * SIZE)
    tl.store(out + into, values.to(out.dtype.element_ty), mask=into < 2 * n)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up of contiguous tensors of one shape."""
    out = torch.empty_like(gate)
    n = out.numel()
    _swiglu[(triton.cdiv(n, ELEMENTS),)](gate, up, out, n, SIZE=ELEMENTS)
    return out


def swiglu_grads(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of gate and up, and silu(gate) * up again; all contiguous, of one shape."""
    outs = torch.empty_like(gate), torch.empty_like(gate), torch.empty_like(gate)
    n = gate.numel()
    _swiglu_grads[(triton.cdiv(n, ELEMENTS),)](gate, up, grad, *outs, n, SIZE=ELEMENTS)
    return outs


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, backward: bool) -> tuple[Tensor, Tensor]:
    """Rotary positions on contiguous (tokens, heads, head dim); cos and sin (tokens, head dim)."""
    outs = torch.empty_like(q), torch.empty_like(k)
    heads: dict[str, Any] = {"QH": q.shape[1], "KH": k.shape[1]}
    heads |= {"QP": triton.next_power_of_2(q.shape[1]), "KP": triton.next_power_of_2(k.shape[1])}
    half = q.shape[2] // 2
    _rotate[(q.shape[0],)](
        q, k, *outs, cos, sin, **heads, HALF=half, HALF_PADDED=triton.next_power_of_2(half), BACK=backward
    )
    return outs


def add_low_rank(y: Tensor, low: Tensor, matrices: Tensor, tiles: Tensor, rows: int) -> None:
    """y += low @ matrices[slot]: y (tokens, n), low (tokens, rank), matrices (slots, rank, n).

    `tiles`: int32 (tiles, 3) of slot, first token and end, at most `rows` tokens each.
    """
    # One launch for all slots, however many there are; addmm would need one per slot and layer.
    # PADDED: tl.dot takes no inner dimension below 16, the size of the tensor cores' blocks.
    rank, n = matrices.shape[1:]
    _add_low[(triton.cdiv(n, TILE_COLUMNS), tiles.shape[0])](
        y, low, matrices, tiles, n, y.stride(0), low.stride(0), matrices.stride(0), matrices.stride(1),
        RANK=rank, PADDED=max(16, triton.next_power_of_2(rank)), ROWS=rows, COLUMNS=TILE_COLUMNS,
    )  # fmt: skip


def target_log_probs(logits: Tensor, targets: Tensor, *, wants_grad: bool) -> Tensor:
    """Float32 (n,), nats, from contiguous logits (n, vocabulary) and ids (n,).

    With `wants_grad`, `logits` then holds the gradients.
    """
    # 8 warps: a row is 150,000 logits long, and there is one program for it.
    out = torch.empty(logits.shape[0], device=logits.device)
    _target_log_probs[(logits.shape[0],)](
        logits, targets, out, logits.shape[1], SIZE=ROW_BLOCK, GRAD=wants_grad, num_warps=8
    )
    return out


def unpack_4bit(packed: Tensor, state: Any) -> Tensor:
    """The (out, in) weight of `packed`, uint8 (out * in / 2, 1), whose block scales are quantised too.

    `state`: bitsandbytes' QuantState, double quantisation of arXiv 2305.14314, 3.
    """
    out = torch.empty(state.shape, dtype=state.dtype, device=packed.device)
    n, inner = packed.numel(), state.state2
    _unpack_4bit[(triton.cdiv(n, ELEMENTS),)](
        packed, out, state.code, state.absmax, inner.code, inner.absmax, state.offset, n,
        BLOCK=state.blocksize, OUTER=inner.blocksize, SIZE=ELEMENTS, num_warps=8,
    )  # fmt: skip
    return out
