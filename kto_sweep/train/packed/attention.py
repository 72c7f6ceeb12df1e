"""Attention over sequences packed into one row of tokens, for any decoder of transformers' registry.

A model whose attention implementation is `NAME` calls `packed_attention` in every layer; the forward's
keyword argument `packing` says which tokens of the row form a sequence. No mask is ever built: transformers
builds none for an implementation without an entry in its mask registry, so the host waits for none.

On CUDA in half precision each call is one varlen flash attention. Elsewhere, and for what that kernel lacks
(float32, soft-capped scores), it is one scaled_dot_product_attention per sequence.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

NAME = "kto_packed"

_GQA_FLAG = "enable_gqa" in inspect.signature(varlen_attn).parameters  # torch 2.12 and later
_FLASH_HEAD_DIM = 256
"""The largest head dim of flash attention's kernels."""


@dataclass
class PrefixStore:
    """Keys and values of one forward by layer, for a second one: (tokens, kv heads, head dim), detached."""

    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass
class Packing:
    """Where the sequences of one forward are in its row of tokens.

    Each of a sequence's tokens is a query. It has more keys than queries when tokens before its first one are
    elsewhere, in the row or in `prefix`: its keys are then gathered from [prefix; row].
    """

    query_lengths: list[int]
    """Queries of each sequence; on the host, so that splitting the row needs no value from the device."""
    key_lengths: list[int]
    query_ends: Tensor
    """0 and then where each sequence's queries end: int32, (sequences + 1,)."""
    key_ends: Tensor
    keep: PrefixStore | None = None
    """Where to store keys and values. Set to None after their use: a recomputed layer stores nothing."""
    prefix: PrefixStore | None = None
    gather: Tensor | None = None
    """Index of every key in [prefix; row]: int64 (keys,)."""
    windows: set[int | None] = field(default_factory=set)
    """The sliding windows that layers passed, in tokens; None for full attention."""


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    packing: Packing | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each sequence, as transformers calls it; no attention weights.

    Takes queries (1, heads, tokens, head dim), keys and values (1, kv heads, tokens, head dim), and gives
    (1, tokens, heads, head dim). Ignores `dropout`: the frozen base model runs without.

    Raises NotImplementedError for unsupported attention; compatibility.py reports it before training.
    """
    if packing is None:
        raise NotImplementedError(f"{type(module).__name__} does not pass `packing` on to its attention")
    # A sink is one more term of each softmax, which the kernels have no argument for. A mask would change
    # which tokens see each other, and here `packing` alone says that.
    if s_aux is not None or attention_mask is not None:
        raise NotImplementedError(f"{type(module).__name__} uses attention sinks or an attention mask")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # views: (tokens, heads, head dim)
    out = attend(module, q, k, v, packing, scaling=scaling, window=sliding_window, softcap=softcap)
    return out[None], None


def attend(
    module: torch.nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    *,
    scaling: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """`packed_attention` on q (tokens, heads, head dim), k and v (tokens, kv heads, head dim): shape of q."""
    packing.windows.add(window)
    if packing.keep is not None:
        # The pass that reads them takes no gradient (z0 is a constant of the loss), so these need no graph.
        # detach copies nothing.
        packing.keep.layers[_layer_index(module)] = (k.detach(), v.detach())
    if packing.gather is not None:
        k, v = _gather_keys(packing, module, k, v)
    if _supports_flash(q, v) and not softcap:  # varlen_attn has no argument for a soft cap
        return _flash(q, k, v, packing, scaling, window)
    return _attend_by_sequence(q, k, v, packing, scaling, window, softcap)


def _supports_flash(q: Tensor, v: Tensor) -> bool:
    """Whether the flash kernels take q and v, (tokens, heads, head dim): one head dim, half precision."""
    return (
        q.is_cuda
        and q.dtype != torch.float32
        and q.shape[-1] <= _FLASH_HEAD_DIM
        and q.shape[-1] == v.shape[-1]
    )


def _layer_index(module: torch.nn.Module) -> int:
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise NotImplementedError(f"{type(module).__name__} has no layer_idx to keep its keys and values by")
    return index


def _gather_keys(packing: Packing, module: torch.nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Every sequence's keys and values side by side: (tokens, kv heads, head dim) -> (keys, ...)."""
    assert packing.gather is not None
    if packing.prefix is not None:
        kept_k, kept_v = packing.prefix.layers[_layer_index(module)]
        k, v = torch.cat([kept_k, k]), torch.cat([kept_v, v])  # the order that `gather` counts in
    # Kernels read one contiguous range of keys per sequence, so a key that several sequences share is copied
    # to each. index_select's backward adds up: the shared key gets the gradients of all its readers.
    return k.index_select(0, packing.gather), v.index_select(0, packing.gather)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, scale: float | None, window: int | None
) -> Tensor:
    """Flash attention of all sequences in one call; `window` in tokens.

    q (tokens, heads, head dim), k and v (keys, kv heads, head dim); gives the shape of q.
    """
    # From the host's lists: the same maxima of query_ends and key_ends would wait for the device.
    longest_query, longest_key = max(packing.query_lengths), max(packing.key_lengths)
    # transformers counts the token itself in the window, the kernel does not.
    window_left = -1 if window is None or window >= longest_key else window - 1
    if supports_direct_flash(q.device):
        return _direct_flash(q, k, v, packing, (longest_query, longest_key), scale, window_left)
    flags: dict[str, Any] = {}
    if k.shape[1] != q.shape[1]:
        if _GQA_FLAG:
            flags["enable_gqa"] = True
        elif not supports_grouped_heads(q.device):
            # Last resort: heads / kv heads times the memory of keys and values, in the backward as well.
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    out = varlen_attn(
        q, k, v, packing.query_ends, packing.key_ends, longest_query, longest_key,
        scale=scale, window_size=(window_left, 0), **flags,
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out


class _DirectFlash(torch.autograd.Function):
    """The kernels under varlen_attn: its registration as an operator costs the host 0.5 ms a call.

    Steps of small models wait for the host, and make a call per layer in the matched and mismatched passes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        packing: Packing,
        longest: tuple[int, int],
        scale: float | None,
        window_left: int,
    ) -> Tensor:
        """(tokens, heads, head dim) from q, and k and v of (keys, kv heads, head dim); half precision."""
        ends = (packing.query_ends, packing.key_ends)
        # As both operators take them: ends, longest query and key, dropout probability, causal. With fewer
        # queries than keys, causal means that the last query sees the last key, as the mismatched pass needs.
        ctx.fixed = (*ends, *longest, 0.0, True)
        ctx.options = {"scale": scale, "window_size_left": window_left, "window_size_right": 0}
        out: Tensor
        # False: no debug mask. `log_sums` are float32 logsumexps of the scores, one per head and query; with
        # them the backward computes attention weights again, so that no (queries, keys) tensor ever exists.
        out, log_sums, state, unused, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, *ctx.fixed, False, **ctx.options
        )
        # Not as attributes of ctx: checkpointing frees, and later recomputes, only what is saved this way.
        ctx.save_for_backward(q, k, v, out, log_sums, state, unused)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v, each with its tensor's shape, from one of (tokens, heads, head dim)."""
        q, k, v, out, log_sums, *random = ctx.saved_tensors
        # Autograd may pass an expanded or transposed view; the kernel wants each head's numbers adjacent.
        q_grad, k_grad, v_grad = torch.ops.aten._flash_attention_backward(
            grads[0].contiguous(), q, k, v, out, log_sums, *ctx.fixed, *random, **ctx.options
        )
        return q_grad, k_grad, v_grad, None, None, None, None


def _direct_flash(*arguments: Any) -> Tensor:
    """`_DirectFlash` with types: (tokens, heads, head dim)."""
    out: Tensor = _DirectFlash.apply(*arguments)  # type: ignore[no-untyped-call]
    return out


@cache
def supports_direct_flash(device: torch.device) -> bool:
    """Whether `_DirectFlash` gives what varlen_attn gives with copied heads, forward and backward.

    Its operators are torch's internal ones and may change: one probe of 8 tokens per device decides.
    """
    # Two sequences, fewer heads of keys than of queries and a window: what training relies on, at once.
    ends = torch.tensor([0, 3, 8], dtype=torch.int32, device=device)
    packing = Packing([3, 5], [3, 5], ends, ends)
    inputs = _probe_qkv(device)
    try:
        with torch.enable_grad():  # the first call may come from a pass without gradients
            expected = _output_and_grads(inputs, _varlen_on_copies(2, ends, window=1))
            direct = _output_and_grads(inputs, lambda *qkv: _direct_flash(*qkv, packing, (5, 5), None, 1))
    except (AttributeError, RuntimeError, TypeError, ValueError):  # gone, renamed or with other arguments
        return False
    return _all_close(direct, expected)


def _varlen_on_copies(copies: int, ends: Tensor, window: int) -> Callable[..., Any]:
    """varlen_attn of two sequences up to 5 tokens long, with `copies` of each head of keys and values."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
        k, v = (x.repeat_interleave(copies, dim=1) for x in (k, v))
        return varlen_attn(q, k, v, ends, ends, 5, 5, window_size=(window, 0))

    return attend


def _probe_qkv(device: torch.device) -> list[Tensor]:
    """bfloat16 q (8 tokens, 4 heads, head dim 64), k and v (8, 2, 64)."""
    # Not random: a draw would advance torch's generator, which others use.
    return [
        torch.arange(8 * heads * 64, device=device).add(heads * first).sin().bfloat16().view(8, heads, 64)
        for heads, first in ((4, 0), (2, 1), (2, 2))
    ]


def _output_and_grads(tensors: list[Tensor], attend: Callable[..., Any]) -> list[Tensor]:
    """What `attend` gives for q, k and v, and then the gradient of each."""
    inputs = [x.detach().requires_grad_() for x in tensors]
    out: Tensor = attend(*inputs)
    # The square makes the incoming gradient differ between elements: a misplaced one shows.
    return [out, *torch.autograd.grad(out.float().square().sum(), inputs)]


def _all_close(results: list[Tensor], expected: list[Tensor]) -> bool:
    # bfloat16 has 8 significant bits: kernels that sum in another order differ by a few times 2^-8.
    return all(torch.allclose(x, y, rtol=0.02, atol=0.02) for x, y in zip(results, expected, strict=True))


@cache
def supports_grouped_heads(device: torch.device) -> bool:
    """Whether varlen attention takes fewer heads of keys than of queries without the flag for it.

    Torch 2.11 does and saves the copies, but no documentation says so: a probe of 8 tokens compares it with
    copied heads, forward and backward. Once per device, since the host waits for the results.
    """
    ends = torch.tensor([0, 3, 8], dtype=torch.int32, device=device)
    try:
        with torch.enable_grad():
            inputs = _probe_qkv(device)
            grouped, copied = (
                _output_and_grads(inputs, _varlen_on_copies(n, ends, window=-1)) for n in (1, 2)
            )
    except (RuntimeError, ValueError):
        return False
    return _all_close(grouped, copied)


def _attend_by_sequence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """One call per sequence: q (tokens, heads, head dim), k and v (keys, kv heads, head dim); shape of q."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    attend = _attend if not softcap else _attend_softcapped
    # Not one call with a block-diagonal mask: that costs tokens^2, and how a sequence's sums are rounded
    # could then depend on its neighbours.
    outs = [
        attend(
            q_i.transpose(0, 1), k_i.transpose(0, 1), v_i.transpose(0, 1), scale, window, softcap
        ).transpose(0, 1)
        for q_i, k_i, v_i in zip(
            torch.split(q, packing.query_lengths),
            torch.split(k, packing.key_lengths),
            torch.split(v, packing.key_lengths),
            strict=True,
        )
    ]
    return torch.cat(outs)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None, _softcap: float | None
) -> Tensor:
    """One sequence: q (heads, queries, head dim), k and v (heads, keys, head dim); shape of q."""
    queries, keys = q.shape[1], k.shape[1]
    if queries == keys and (window is None or window >= keys):
        return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=scale)[0]
    # With fewer queries than keys, is_causal aligns the first query with the first key; here the last query
    # is the last key's token, so the mask is written out.
    mask = visible(queries, keys, window, q.device)
    return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, scale=scale)[0]


def _attend_softcapped(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None, softcap: float | None
) -> Tensor:
    """`_attend` whose scores s become softcap * tanh(s / softcap) (Gemma 2, arXiv 2408.00118, 2.2)."""
    assert softcap
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    # Before the mask: tanh would turn -inf into -softcap, and masked keys would get weight.
    scores = softcap * torch.tanh(scores / softcap)
    masked = ~visible(q.shape[1], k.shape[1], window, q.device)
    # Float32, as in transformers' own attention of Gemma 2, whose log-probs these must match.
    weights = scores.masked_fill(masked, float("-inf")).softmax(dim=-1, dtype=torch.float32)
    return weights.to(q.dtype) @ v


def visible(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query sees: boolean (queries, keys); the last query is the last key's own token.

    >>> visible(2, 3, None, torch.device("cpu")).int().tolist()
    [[1, 1, 0], [1, 1, 1]]
    >>> visible(2, 3, 2, torch.device("cpu")).int().tolist()
    [[1, 1, 0], [0, 1, 1]]
    """
    # Query i is key i + (keys - queries): that diagonal bounds what it sees, the window the other side.
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask if window is None else mask.triu(keys - queries - window + 1)


AttentionInterface.register(NAME, packed_attention)
