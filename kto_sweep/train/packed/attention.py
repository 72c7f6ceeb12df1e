"""Attention over sequences packed into one row of tokens, for any decoder of transformers' registry.

A model whose attention implementation is `NAME` calls `packed_attention` in every layer; what lies where in
the row comes with the forward as the keyword argument `packing`. No mask is ever built: transformers builds
none for an implementation that has no entry in its mask registry, and so does no host synchronisation either.

On CUDA in half precision each call is one varlen flash attention. Elsewhere, and for what that kernel cannot
do (float32, soft-capped scores), it is one scaled_dot_product_attention per sequence.
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
"""The largest head that flash attention takes."""


@dataclass
class PrefixStore:
    """Keys and values of one forward by layer, for a second one: (tokens, heads, head dim), detached."""

    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass
class Packing:
    """How the sequences of one forward lie in its row of tokens.

    A sequence has as many queries as it has tokens in the row. It has more keys than queries when the tokens
    before its own lie elsewhere, in the row or in `prefix`: the keys are then gathered from [prefix; row].
    """

    query_lengths: list[int]
    key_lengths: list[int]
    query_ends: Tensor
    """0 and then where each sequence's queries end: int32, (sequences + 1,)."""
    key_ends: Tensor
    keep: PrefixStore | None = None
    """Where to store keys and values. Set to None once they are used: a recomputed layer stores nothing."""
    prefix: PrefixStore | None = None
    gather: Tensor | None = None
    """Index of every key in [prefix; row]: (keys,)."""
    windows: set[int | None] = field(default_factory=set)
    """Sliding windows that layers asked for, in tokens; None for full attention."""


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
    """Causal attention inside each sequence: (1, tokens, heads, head dim), and no weights.

    Arguments of shape (1, heads, tokens, head dim). `dropout` is ignored: the frozen base model runs without.

    Raises NotImplementedError for attention that this cannot do; train/support.py says so before training.
    """
    if packing is None:
        raise NotImplementedError(f"{type(module).__name__} does not pass `packing` on to its attention")
    if s_aux is not None or attention_mask is not None:
        raise NotImplementedError(f"{type(module).__name__} uses attention sinks or a mask of its own")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
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
    """The same on tensors of shape (tokens, heads, head dim)."""
    packing.windows.add(window)
    if packing.keep is not None:
        packing.keep.layers[_layer(module)] = (k.detach(), v.detach())
    if packing.gather is not None:
        k, v = _gathered(packing, module, k, v)
    if _flash_can(q, v) and not softcap:
        return _flash(q, k, v, packing, scaling, window)
    return _by_sequence(q, k, v, packing, scaling, window, softcap)


def _flash_can(q: Tensor, v: Tensor) -> bool:
    return (
        q.is_cuda
        and q.dtype != torch.float32
        and q.shape[-1] <= _FLASH_HEAD_DIM
        and q.shape[-1] == v.shape[-1]
    )


def _layer(module: torch.nn.Module) -> int:
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise NotImplementedError(f"{type(module).__name__} has no layer_idx to keep its keys and values by")
    return index


def _gathered(packing: Packing, module: torch.nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    assert packing.gather is not None
    if packing.prefix is not None:
        kept_k, kept_v = packing.prefix.layers[_layer(module)]
        k, v = torch.cat([kept_k, k]), torch.cat([kept_v, v])
    return k.index_select(0, packing.gather), v.index_select(0, packing.gather)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, scale: float | None, window: int | None
) -> Tensor:
    longest_query, longest_key = max(packing.query_lengths), max(packing.key_lengths)
    # transformers counts the token itself in the window, the kernel does not.
    back = -1 if window is None or window >= longest_key else window - 1
    if takes_plain_calls(q.device):
        return _plain_flash(q, k, v, packing, (longest_query, longest_key), scale, back)
    flags: dict[str, Any] = {}
    if k.shape[1] != q.shape[1]:
        if _GQA_FLAG:
            flags["enable_gqa"] = True
        elif not takes_grouped_heads(q.device):
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    out = varlen_attn(
        q, k, v, packing.query_ends, packing.key_ends, longest_query, longest_key,
        scale=scale, window_size=(back, 0), **flags,
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out


class _PlainFlash(torch.autograd.Function):
    """The kernels under varlen_attn: its registration as an operator costs the host 0.5 ms a call."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        packing: Packing,
        longest: tuple[int, int],
        scale: float | None,
        back: int,
    ) -> Tensor:
        ends = (packing.query_ends, packing.key_ends)
        ctx.fixed = (*ends, *longest, 0.0, True)
        ctx.options = {"scale": scale, "window_size_left": back, "window_size_right": 0}
        out: Tensor
        out, sums, state, unused, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, *ctx.fixed, False, **ctx.options
        )
        ctx.save_for_backward(q, k, v, out, sums, state, unused)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, sums, *random = ctx.saved_tensors
        q_grad, k_grad, v_grad = torch.ops.aten._flash_attention_backward(
            grads[0].contiguous(), q, k, v, out, sums, *ctx.fixed, *random, **ctx.options
        )
        return q_grad, k_grad, v_grad, None, None, None, None


def _plain_flash(*arguments: Any) -> Tensor:
    """`_PlainFlash`: (tokens, heads, head dim)."""
    out: Tensor = _PlainFlash.apply(*arguments)  # type: ignore[no-untyped-call]
    return out


@cache
def takes_plain_calls(device: torch.device) -> bool:
    """Whether `_PlainFlash` gives what varlen_attn gives with copied heads, forward and backward.

    Its operators are torch's own and may change: they are tried on a few tokens, once for each device.
    """
    ends = torch.tensor([0, 3, 8], dtype=torch.int32, device=device)
    packing = Packing([3, 5], [3, 5], ends, ends)
    inputs = _few_heads(device)
    try:
        with torch.enable_grad():
            expected = _tried(inputs, _varlen_on_copies(2, ends, window=1))
            found = _tried(inputs, lambda *qkv: _plain_flash(*qkv, packing, (5, 5), None, 1))
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    return _agree(found, expected)


def _varlen_on_copies(copies: int, ends: Tensor, window: int) -> Callable[..., Any]:
    """varlen_attn of two sequences up to 5 tokens long, with `copies` of each head of keys and values."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
        k, v = (x.repeat_interleave(copies, dim=1) for x in (k, v))
        return varlen_attn(q, k, v, ends, ends, 5, 5, window_size=(window, 0))

    return attend


def _few_heads(device: torch.device) -> list[Tensor]:
    return [
        torch.arange(8 * heads * 64, device=device).add(heads * first).sin().bfloat16().view(8, heads, 64)
        for heads, first in ((4, 0), (2, 1), (2, 2))
    ]


def _tried(tensors: list[Tensor], attend: Callable[..., Any]) -> list[Tensor]:
    """The result and its gradients."""
    inputs = [x.detach().requires_grad_() for x in tensors]
    out: Tensor = attend(*inputs)
    return [out, *torch.autograd.grad(out.float().square().sum(), inputs)]


def _agree(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=0.02, atol=0.02) for x, y in zip(found, expected, strict=True))


@cache
def takes_grouped_heads(device: torch.device) -> bool:
    """Whether varlen attention takes fewer heads of keys than of queries without the flag for it.

    Torch 2.11 does and saves the copies, but no documentation says so: it is tried on a few tokens, forward
    and backward, against copied heads. Once for each device, as it waits for the results.
    """
    ends = torch.tensor([0, 3, 8], dtype=torch.int32, device=device)
    try:
        with torch.enable_grad():
            inputs = _few_heads(device)
            found, expected = (_tried(inputs, _varlen_on_copies(n, ends, window=-1)) for n in (1, 2))
    except (RuntimeError, ValueError):
        return False
    return _agree(found, expected)


def _by_sequence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    attend = _attend if not softcap else _attend_softcapped
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
    queries, keys = q.shape[1], k.shape[1]
    if queries == keys and (window is None or window >= keys):
        return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=scale)[0]
    mask = visible(queries, keys, window, q.device)
    return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, scale=scale)[0]


def _attend_softcapped(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None, softcap: float | None
) -> Tensor:
    """Scores s become softcap * tanh(s / softcap) before the softmax (Gemma 2, arXiv 2408.00118, 2.2)."""
    assert softcap
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = softcap * torch.tanh(scores / softcap)
    hidden = ~visible(q.shape[1], k.shape[1], window, q.device)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1, dtype=torch.float32)
    return weights.to(q.dtype) @ v


def visible(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query sees: boolean (queries, keys); the last query is the last key's own token.

    >>> visible(2, 3, None, torch.device("cpu")).int().tolist()
    [[1, 1, 0], [1, 1, 1]]
    >>> visible(2, 3, 2, torch.device("cpu")).int().tolist()
    [[1, 1, 0], [0, 1, 1]]
    """
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask if window is None else mask.triu(keys - queries - window + 1)


AttentionInterface.register(NAME, packed_attention)
