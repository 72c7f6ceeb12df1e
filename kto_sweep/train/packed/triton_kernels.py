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
"""Bytes of one program that unpacks 4-bit weights."""
ROW_BLOCK = 8192
"""Logits of a row that one program holds at once."""
COLUMNS = 1024
"""Columns of one program of swiglu and its gradients."""
TRANSPOSED = 128
"""Rows and columns of one tile of a transposition."""
TILE_COLUMNS = 128
"""Columns of one tile of `add_low_rank`."""


@triton.jit
def _rms_norm(
    x, added, weight, total, out, n, x_row, eps, HEADS: tl.constexpr, ADD: tl.constexpr, SIZE: tl.constexpr
):
    """out = total / sqrt(mean(total^2) + eps) * weight for one row of n, where total = x + added with ADD."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, SIZE)
    inside = place < n
    # The rows of x may be heads in a wider tensor: HEADS of them side by side, x_row from token to token.
    value = tl.load(x + (row // HEADS) * x_row + (row % HEADS) * n + place, mask=inside, other=0.0).to(
        tl.float32
    )
    at = row * n + place
    if ADD:
        value += tl.load(added + at, mask=inside, other=0.0).to(tl.float32)
        # Rounded before the norm: its backward reads this sum in the model's precision.
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=inside)
        value = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value) / n + eps)
    w = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (value * scale * w).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rms_norm_grad(
    grad, x, weight, residual, out, n, x_row, out_row, eps,
    HEADS: tl.constexpr, ADD: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The gradient of one row of x, n wide, from that of its norm; with ADD, plus the residual path's."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, SIZE)
    inside = place < n
    token, head = row // HEADS, row % HEADS
    value = tl.load(x + token * x_row + head * n + place, mask=inside, other=0.0).to(tl.float32)
    # The scale is computed again: one sum over a row that is read here anyway, instead of a kept tensor.
    scale = tl.rsqrt(tl.sum(value * value) / n + eps)
    w = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(grad + row * n + place, mask=inside, other=0.0).to(tl.float32) * w
    # d(x * scale) = scale * dx - x * scale^3 * mean(x * dx)
    result = scale * slope - value * (scale * scale * scale * tl.sum(slope * value) / n)
    if ADD:
        result += tl.load(residual + row * n + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * out_row + head * n + place, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu(gate_up, out, n, SIZE: tl.constexpr):
    """out = silu(gate) * up for SIZE columns of one row; gate and up are n columns each, side by side."""
    # 64-bit: 120,000 tokens of a 7B model's MLP (18,944 wide) are more than 2^31 elements.
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = place < n
    gate = gate_up + row * (2 * n) + place
    g = tl.load(gate, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(gate + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * n + place, (g * tl.sigmoid(g) * u).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_grads(gate_up, grad, n, SIZE: tl.constexpr):
    """Replaces gate and up by their gradients, and `grad` by silu(gate) * up, from one read of each."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = place < n
    gate, at = gate_up + row * (2 * n) + place, grad + row * n + place
    g = tl.load(gate, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(gate + n, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(g)
    silu = g * sigmoid
    kind = grad.dtype.element_ty
    # silu'(g) = s + g s (1 - s) = s (1 + g - g s): the sigmoid is computed once for all three results.
    tl.store(gate, (d * u * sigmoid * (1 + g - silu)).to(kind), mask=inside)
    tl.store(gate + n, (d * silu).to(kind), mask=inside)
    tl.store(at, (silu * u).to(kind), mask=inside)


@triton.jit
def _rotate_heads(
    x,
    out,
    x_row,
    out_row,
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
    """Rotates all heads of token `row`, HEADS of 2 * HALF side by side; angles (1, HALF_PADDED) each."""
    # tl.arange takes powers of 2 only: heads and halves are padded, and `inside` masks the padding.
    head = tl.arange(0, PADDED)[:, None]
    place = tl.arange(0, HALF_PADDED)[None, :]
    at = head * (2 * HALF) + place
    inside = (head < HEADS) & (place < HALF)
    source = x + row * x_row + at
    x1 = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    # transformers pairs feature i with i + HALF: one program loads both halves before it stores either, so
    # that `out` may be `x`.
    x2 = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        # The transpose of the 2 x 2 matrix below. It does not assume that cos and sin repeat in both halves.
        y1 = x1 * cos1 + x2 * sin2
        y2 = x2 * cos2 - x1 * sin1
    else:
        y1 = x1 * cos1 - x2 * sin1
        y2 = x2 * cos2 + x1 * sin2
    into = out + row * out_row + at
    tl.store(into, y1.to(out.dtype.element_ty), mask=inside)
    tl.store(into + HALF, y2.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rotate(
    q,
    k,
    q_out,
    k_out,
    q_row,
    k_row,
    q_out_row,
    k_out_row,
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
    _rotate_heads(q, q_out, q_row, q_out_row, row, cos1, cos2, sin1, sin2, QH, QP, HALF, HALF_PADDED, BACK)
    _rotate_heads(k, k_out, k_row, k_out_row, row, cos1, cos2, sin1, sin2, KH, KP, HALF, HALF_PADDED, BACK)


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
    packed, out, code, scales, scale_code, outer_scales, mean, row_scales, n, row_bytes,
    BLOCK: tl.constexpr, OUTER: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Unpacks SIZE of n bytes into 2 * SIZE values; BLOCK values per scale, OUTER scales per outer scale.

    With ROWS, divided by the row's scale; a row has row_bytes.
    """
    start = tl.program_id(0).to(tl.int64) * SIZE
    at = start + tl.arange(0, SIZE)
    byte = tl.load(packed + at, mask=at < n, other=0).to(tl.int32)
    block = at // (BLOCK // 2)  # BLOCK counts values, two in a byte
    inner = tl.load(scales + block, mask=at < n, other=0).to(tl.int32)
    outer = tl.load(outer_scales + block // OUTER, mask=at < n, other=0.0)
    # Double quantisation: scales are bytes too, and `mean`, subtracted before, centres them on their code.
    scale = tl.load(scale_code + inner) * outer + tl.load(mean)
    if ROWS:
        scale /= tl.load(row_scales + at // row_bytes, mask=at < n, other=1.0)
    # bitsandbytes packs the earlier of two values in the high half; `code` holds the 16 values that exist.
    values = tl.interleave(tl.load(code + (byte >> 4)) * scale, tl.load(code + (byte & 15)) * scale)
    into = 2 * start + tl.arange(0, 2 * SIZE)
    tl.store(out + into, values.to(out.dtype.element_ty), mask=into < 2 * n)


@triton.jit
def _to_fp8(x, columns, out, scales, n, x_row, COLUMNS: tl.constexpr, SIZE: tl.constexpr):
    """One row of n in E4M3 with its scale; with COLUMNS, of the row times `columns`."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, SIZE)
    x += row * x_row
    largest = tl.zeros([SIZE], tl.float32)
    for start in range(0, n, SIZE):
        at = start + place
        value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
        if COLUMNS:
            value *= tl.load(columns + at, mask=at < n, other=0.0)
        largest = tl.maximum(largest, tl.abs(value))
    scale = tl.maximum(tl.max(largest), 1e-12) / 448.0
    tl.store(scales + row, scale)
    # The second read of the row comes from the cache.
    for start in range(0, n, SIZE):
        at = start + place
        value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
        if COLUMNS:
            value *= tl.load(columns + at, mask=at < n, other=0.0)
        tl.store(out + row * n + at, (value / scale).to(tl.float8e4nv), mask=at < n)


@triton.jit
def _transpose(x, out, rows, columns, SIZE: tl.constexpr):
    """out = x^T for one SIZE x SIZE tile of bytes."""
    row = (tl.program_id(0) * SIZE + tl.arange(0, SIZE)).to(tl.int64)
    column = (tl.program_id(1) * SIZE + tl.arange(0, SIZE)).to(tl.int64)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    tile = tl.load(x + row[:, None] * columns + column[None, :], mask=inside, other=0)
    into = out + column[:, None] * rows + row[None, :]
    # Turned in the program's memory, so that reads and writes are both of adjacent bytes.
    tl.store(into, tl.trans(tile), mask=(column[:, None] < columns) & (row[None, :] < rows))


def to_fp8(x: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    """x, (rows, n) with adjacent columns, in E4M3 with a float32 scale per row, (rows, 1)."""
    rows, n = x.shape
    out = torch.empty(rows, n, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, 1, device=x.device)
    size = min(4096, triton.next_power_of_2(n))
    _to_fp8[(rows,)](
        x, scales if columns is None else columns, out, scales, n, x.stride(0),
        COLUMNS=columns is not None, SIZE=size, num_warps=8 if size >= 2048 else 4,
    )  # fmt: skip
    return out, scales


def transposed(x: Tensor) -> Tensor:
    """A contiguous copy of the transpose of bytes, (n, m)."""
    rows, columns = x.shape
    out = torch.empty(columns, rows, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(rows, TRANSPOSED), triton.cdiv(columns, TRANSPOSED))
    _transpose[grid](x, out, rows, columns, SIZE=TRANSPOSED)
    return out


def rms_norm(x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + added (or x), and its norm: contiguous (tokens, n), or without `added` (tokens, heads, n)."""
    n = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = x if added is None else torch.empty_like(out)
    _rms_norm[(x.numel() // n,)](
        x, x if added is None else added, weight, total, out, n, x.stride(0), eps,
        HEADS=x.numel() // n // x.shape[0], ADD=added is not None, **_row_block(n),
    )  # fmt: skip
    return total, out


def rms_norm_grad(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, out: Tensor
) -> None:
    """Writes the gradient of x to `out`; `grad` and `residual` are contiguous."""
    n = x.shape[-1]
    _rms_norm_grad[(x.numel() // n,)](
        grad, x, weight, grad if residual is None else residual, out, n, x.stride(0), out.stride(0), eps,
        HEADS=x.numel() // n // x.shape[0], ADD=residual is not None, **_row_block(n),
    )  # fmt: skip


def _row_block(n: int) -> dict[str, int]:
    """A block that holds a row of n, and the warps for it."""
    size = triton.next_power_of_2(n)
    return {"SIZE": size, "num_warps": 8 if size >= 2048 else 4 if size >= 512 else 1}


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, (tokens, n), of contiguous (tokens, 2 n)."""
    tokens, n = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(tokens, n, dtype=gate_up.dtype, device=gate_up.device)
    _swiglu[(tokens, triton.cdiv(n, COLUMNS))](gate_up, out, n, SIZE=COLUMNS)
    return out


def swiglu_grads(gate_up: Tensor, grad: Tensor) -> None:
    """Replaces contiguous gate_up, (tokens, 2 n), by its gradient and `grad`, (tokens, n), by `swiglu`."""
    tokens, n = grad.shape
    _swiglu_grads[(tokens, triton.cdiv(n, COLUMNS))](gate_up, grad, n, SIZE=COLUMNS)


def rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, outs: tuple[Tensor, Tensor], *, backward: bool
) -> None:
    """Rotary positions on (tokens, heads, head dim), any stride between tokens; cos and sin contiguous."""
    heads: dict[str, Any] = {"QH": q.shape[1], "KH": k.shape[1]}
    heads |= {"QP": triton.next_power_of_2(q.shape[1]), "KP": triton.next_power_of_2(k.shape[1])}
    half = q.shape[2] // 2
    _rotate[(q.shape[0],)](
        q, k, *outs, q.stride(0), k.stride(0), outs[0].stride(0), outs[1].stride(0), cos, sin,
        **heads, HALF=half, HALF_PADDED=triton.next_power_of_2(half), BACK=backward,
    )  # fmt: skip


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


def unpack_4bit(packed: Tensor, state: Any, out: Tensor, row_scales: Tensor | None) -> None:
    """Writes the (out, in) weight of `packed`, uint8 (out * in / 2, 1), whose block scales are quantised too.

    `state`: bitsandbytes' QuantState, double quantisation of arXiv 2305.14314, 3. `out`: contiguous.
    `row_scales`: (out, 1), what the rows are divided by, or None.
    """
    n, inner = packed.numel(), state.state2
    _unpack_4bit[(triton.cdiv(n, ELEMENTS),)](
        packed, out, state.code, state.absmax, inner.code, inner.absmax, state.offset,
        inner.absmax if row_scales is None else row_scales, n, state.shape[1] // 2,
        BLOCK=state.blocksize, OUTER=inner.blocksize, ROWS=row_scales is not None, SIZE=ELEMENTS, num_warps=8,
    )  # fmt: skip
