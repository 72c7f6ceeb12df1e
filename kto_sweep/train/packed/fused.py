"""Decoder layers of known classes as one function each, with a backward of its own and few kernels.

A step of a small model waits for kernel launches, that of a large one for memory traffic; both come from
elementwise work and from Python around it. `install` gives the modules that it knows another forward with the
same result:

    layer    norm, q/k/v, rotary positions, attention, o, norm, gate/up, silu, down, as one autograd function;
             layers with one input are one product, residual sums are part of the norms
    norm     one kernel; the norms outside these layers

A module falls back on its original forward where this one does not cover the case: dropout in the adapters,
8-bit layers. compatibility.py compares every model's log-probs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kto_sweep.models.architecture import Recompute
from kto_sweep.train.packed import kernels
from kto_sweep.train.packed.attention import Packing, attend
from kto_sweep.train.packed.frozen_linear import FrozenLinear
from kto_sweep.train.packed.lora_product import (
    AdapterGroup,
    TokenRouting,
    adapters_backward,
    add_adapters,
    add_low_rank,
    add_outer,
    per_slot,
)

_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
"""Models of transformers whose layers compute what the classes below do."""


class Adapters(Protocol):
    """The adapters on a model, as its fused layers see them."""

    anchor: Tensor
    """Requires a gradient: it makes the first layer's output differentiable."""

    @property
    def route(self) -> TokenRouting | None:
        """Which tokens of the current forward use which slot; None while the adapters are inactive."""

    def groups(self, layers: Sequence[Sequence[nn.Linear]]) -> list[AdapterGroup | None] | None:
        """The adapters of each group of layers with one input, None for a group without any.

        None in place of the list if those of a group cannot be applied as one.
        """


class FusedModule:
    """Another forward of one module, with the same arguments and result."""

    # Not an nn.Module: assigned to `module.forward`, that would be registered as a submodule, and the
    # class's forward would still run.

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.original_forward: Callable[..., Any] = partial(type(module).forward, module)


class Norm(FusedModule):
    """x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467)"""

    def __call__(self, x: Tensor) -> Tensor:
        """(..., features) -> (..., features)."""
        module: Any = self.module
        if x.dtype != module.weight.dtype:  # torch's fused kernel takes one dtype
            original: Tensor = self.original_forward(x)
            return original
        # transformers casts, squares, averages, scales and casts back in a kernel each, and keeps float32
        # copies of x for the backward; this kernel sums in float32 inside.
        return F.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)


class Layer(FusedModule):
    """A decoder layer: h = x + attention(norm(x)), then h + mlp(norm(h))."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        block = module.self_attn
        self.attention: Any = block
        self.linear_groups = _linear_groups(module)
        self.qkv, self.o, self.gate_up, self.down = map(FrozenLinear, self.linear_groups)
        self.norms = [
            (n.weight, n.variance_epsilon) for n in (module.input_layernorm, module.post_attention_layernorm)
        ]
        """Weight and epsilon."""
        heads = [block.q_norm, block.k_norm] if hasattr(block, "q_norm") else []
        self.head_norms = [(n.weight, n.variance_epsilon) for n in heads]
        """Qwen3's norms of each head of q and of k, before the rotation."""
        # Mistral's blocks read their window from the configuration.
        source = block.config if type(block).__name__.startswith("Mistral") else block
        self.window: int | None = getattr(source, "sliding_window", None)
        self.recompute = Recompute.NOTHING
        self._adapters: list[tuple[Adapters, list[AdapterGroup | None] | None]] = []

    def attach_adapters(self, adapters: Adapters) -> None:
        """Apply `adapters` in every forward for which they have a route."""
        # Grouped now, not in each forward: views of one buffer stay valid while the weights change in it.
        self._adapters.append((adapters, adapters.groups(self.linear_groups)))

    def detach_adapters(self, adapters: Adapters) -> None:
        """Undo `attach_adapters`."""
        self._adapters = [each for each in self._adapters if each[0] is not adapters]

    def active_adapters(self) -> tuple[Adapters | None, list[AdapterGroup | None]] | None:
        """The active adapters and their group for each group of linear layers; without active ones, all None.

        None when the fused forward does not cover them.
        """
        active = [each for each in self._adapters if each[0].route is not None]
        if not active:  # the base model, which gives the reference log-probs
            return None, [None] * len(self.linear_groups)
        (adapters, groups), route = active[0], active[0][0].route
        # The backward below takes one set of adapters and no dropout mask. The original forward supports
        # both, since it calls the linear layers, and with them the adapters' hooks.
        if len(active) > 1 or groups is None or route is None or route.noise is not None:
            return None
        return adapters, groups

    def __call__(self, hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """(1, tokens, hidden) -> (1, tokens, hidden)."""
        call = self._covered(hidden_states, arguments, options)
        if call is not None:
            out: Tensor = _LayerFunction.apply(hidden_states[0], call.anchor, self, call)  # type: ignore[no-untyped-call]
            return out[None]
        forward = partial(self.original_forward, *arguments, **options)
        if self.recompute is Recompute.NOTHING or not torch.is_grad_enabled():
            original: Tensor = forward(hidden_states)
            return original
        # As in Decoder.set_recompute, for layers that are never covered.
        kept: Tensor = checkpoint(forward, hidden_states, use_reentrant=False, preserve_rng_state=False)
        return kept

    def _covered(self, x: Tensor, arguments: Sequence[Any], options: dict[str, Any]) -> "_Call | None":
        """The forward as one function; None for a forward that only the original covers."""
        active = self.active_adapters()
        packing, positions = options.get("packing"), options.get("position_embeddings")
        if active is None or packing is None or positions is None:
            return None
        if arguments or options.get("attention_mask") is not None or x.dtype != self.norms[0][0].dtype:
            return None
        adapters, groups = active
        anchor, route = (None, None) if adapters is None else (adapters.anchor, adapters.route)
        cos, sin = positions
        # Asked here: inside a Function's forward gradients are always off.
        trains = torch.is_grad_enabled() and (anchor is not None or x.requires_grad)
        return _Call(groups, route, packing, cos[0], sin[0], anchor, trains)


@dataclass(frozen=True)
class _Call:
    """One forward of a layer."""

    groups: Sequence[AdapterGroup | None]
    """Adapters of q/k/v, o, gate/up and down."""
    route: TokenRouting | None
    packing: Packing
    cos: Tensor
    """(tokens, head dim)"""
    sin: Tensor
    anchor: Tensor | None
    trains: bool
    """Whether a backward follows."""


@dataclass
class _Attended:
    """Attention of one forward, with what its backward needs."""

    qkv: Tensor
    """(tokens, q + k + v)"""
    heads: tuple[Tensor, ...]
    """q, k and v as the attention takes them: (tokens, heads, head dim)."""
    out: Tensor
    """The attention's output with a graph of its own: (tokens, heads, head dim)."""
    low_qkv: Tensor | None
    """x A^T of q/k/v: (tokens, layers * rank); None without adapters."""
    low_o: Tensor | None


@dataclass
class _Kept:
    """What a layer keeps for its backward."""

    x: Tensor
    """(tokens, hidden)"""
    attended: _Attended | None = None
    h: Tensor | None = None
    """x + attention: (tokens, hidden)"""
    gate_up: Tensor | None = None
    """(tokens, 2 * intermediate)"""
    low_gate_up: Tensor | None = None
    low_down: Tensor | None = None


class _LayerFunction(torch.autograd.Function):
    """`Layer` with its adapters.

    Autograd, operation by operation, would keep the outputs of both norms, silu(gate) and silu(gate) * up,
    and would call Python in the backward of each operation.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, _anchor: Tensor | None, layer: Layer, call: _Call) -> Tensor:
        """(tokens, hidden) -> (tokens, hidden).

        `_anchor` requires a gradient when x, from the frozen embedding, does not: backward then still runs.
        """
        level = layer.recompute if call.trains else Recompute.LAYER
        o, attended = _attend(layer, call, x, keeps=level < Recompute.LAYER)
        h, normed = kernels.rms_norm(o, x, *layer.norms[1])  # h = x + o
        gate_up, low_gate_up = _project(normed, layer.gate_up, call.groups[2], call.route)
        out, low_down = _project(kernels.swiglu(gate_up), layer.down, call.groups[3], call.route)
        if call.trains:
            kept = _Kept(x)
            if level < Recompute.LAYER:
                kept = _Kept(x, attended, h, None, low_gate_up, low_down)
            if level < Recompute.MLP:
                kept.gate_up = gate_up
            # On the context, not by save_for_backward: the attention's graph is not a tensor, and the
            # backward can take all off, so that a layer's memory is free before the next one's backward.
            ctx.layer, ctx.call, ctx.kept = layer, call, kept
        return out.add_(h)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        """Gradient of x, (tokens, hidden); those of A and B go to the groups' float32 buffers."""
        layer, call, kept, ctx.kept = ctx.layer, ctx.call, ctx.kept, None
        _recompute(layer, call, kept)
        h_grad = _mlp_backward(layer, call, kept, grads[0].contiguous())
        kept.gate_up = None  # the widest tensor, before the attention's backward allocates
        x_grad = _attention_backward(layer, call, kept, h_grad, wants_x=ctx.needs_input_grad[0])
        return x_grad, None, None, None


def _project(
    x: Tensor, linear: FrozenLinear, group: AdapterGroup | None, route: TokenRouting | None
) -> tuple[Tensor, Tensor | None]:
    """The layers' outputs side by side, adapters included, and x A^T for the backward, if there are any."""
    out = linear(x)
    return out, None if group is None or route is None else add_adapters(out, x, group, route)


def _project_backward(
    grad: Tensor, low: Tensor | None, x: Tensor, group: AdapterGroup | None, route: TokenRouting | None,
    total: Tensor | None,
) -> None:  # fmt: skip
    """The adapters' part of `_project`'s backward; the gradient of x through A is added to `total`."""
    if low is None or group is None or route is None:
        return
    low_grad = adapters_backward(grad, low, group, route)
    add_outer(group.a_grad, low_grad, x, route)
    if total is not None:
        add_low_rank(total, low_grad, group.a, route)


def _attend(layer: Layer, call: _Call, x: Tensor, *, keeps: bool) -> tuple[Tensor, _Attended]:
    """o(attention(norm(x))), (tokens, hidden); without `keeps` the second result has no graph."""
    tokens, head_dim = x.shape[0], layer.attention.head_dim
    _, normed = kernels.rms_norm(x, None, *layer.norms[0])
    qkv, low_qkv = _project(normed, layer.qkv, call.groups[0], call.route)
    # Heads are counted by the view: fewer heads of k and v. No transpose to heads first and no copy of v:
    # varlen kernels read this layout, whatever the stride between tokens.
    q, k, v = (part.unflatten(1, (-1, head_dim)) for part in qkv.split(layer.qkv.widths, dim=1))
    if layer.head_norms:
        q, k = (
            kernels.rms_norm(part, None, *norm)[1]
            for part, norm in zip((q, k), layer.head_norms, strict=True)
        )
    kernels.rotate(q, k, call.cos, call.sin, (q, k))  # in place: a rotation's gradient needs no input
    if call.packing.keep is not None and not keeps:
        k, v = k.clone(), v.clone()  # as views they would keep q in memory for the mismatched pass
    with torch.set_grad_enabled(keeps):
        # A graph of its own: its kernels differ between devices and dtypes, each with its own gradient.
        q, k, v = heads = tuple(part.detach().requires_grad_(keeps) for part in (q, k, v))
        out = attend(
            layer.attention, q, k, v, call.packing, scaling=layer.attention.scaling, window=layer.window
        )
    o, low_o = _project(out.detach().reshape(tokens, -1), layer.o, call.groups[1], call.route)
    return o, _Attended(qkv, heads, out, low_qkv, low_o)


def _recompute(layer: Layer, call: _Call, kept: _Kept) -> None:
    """Fill in what the forward did not keep."""
    if kept.attended is None:
        o, kept.attended = _attend(layer, call, kept.x, keeps=True)
        kept.h, normed = kernels.rms_norm(o, kept.x, *layer.norms[1])
        kept.gate_up, kept.low_gate_up = _project(normed, layer.gate_up, call.groups[2], call.route)
        if call.groups[3] is not None and call.route is not None:
            kept.low_down = per_slot(
                kernels.swiglu(kept.gate_up), call.groups[3].a.transpose(1, 2), call.route
            )
    elif kept.gate_up is None:
        assert kept.h is not None
        _, normed = kernels.rms_norm(kept.h, None, *layer.norms[1])
        kept.gate_up, _ = _project(normed, layer.gate_up, call.groups[2], call.route)


def _mlp_backward(layer: Layer, call: _Call, kept: _Kept, grad: Tensor) -> Tensor:
    """Gradient of h, (tokens, hidden), from that of the layer's output."""
    h, gate_up, down_group, route = kept.h, kept.gate_up, call.groups[3], call.route
    assert h is not None
    assert gate_up is not None
    wide = layer.down.input_grad(grad)  # of silu(gate) * up: (tokens, intermediate)
    low_grad = None
    if kept.low_down is not None and down_group is not None and route is not None:
        low_grad = adapters_backward(grad, kept.low_down, down_group, route)
        # Before swiglu_grads, which takes the whole gradient of down's input: through down and its A.
        add_low_rank(wide, low_grad, down_group.a, route)
    kernels.swiglu_grads(gate_up, wide)  # `gate_up` is now its gradient, and `wide` down's input again
    if low_grad is not None and down_group is not None and route is not None:
        # Only now: down's A needs down's input, which did not exist until the line before.
        add_outer(down_group.a_grad, low_grad, wide, route)
    del wide  # one of the widest tensors, before the product below allocates
    normed_grad = layer.gate_up.input_grad(gate_up)
    # The norm is computed again: one kernel, where keeping it would cost (tokens, hidden) in every layer.
    _, normed = kernels.rms_norm(h, None, *layer.norms[1])
    _project_backward(gate_up, kept.low_gate_up, normed, call.groups[2], route, normed_grad)
    kernels.rms_norm_grad(normed_grad, h, *layer.norms[1], residual=grad, out=normed_grad)
    return normed_grad


def _attention_backward(
    layer: Layer, call: _Call, kept: _Kept, h_grad: Tensor, *, wants_x: bool
) -> Tensor | None:
    """Gradient of x, (tokens, hidden), from that of h; None for the first layer's, from the embedding."""
    attended = kept.attended
    assert attended is not None
    tokens, head_dim = h_grad.shape[0], layer.attention.head_dim
    out_grad = layer.o.input_grad(h_grad)
    attention_out = attended.out.detach().reshape(tokens, -1)
    _project_backward(h_grad, attended.low_o, attention_out, call.groups[1], call.route, out_grad)
    q_grad, k_grad, v_grad = torch.autograd.grad(attended.out, attended.heads, out_grad.view_as(attended.out))
    # Into the memory of q, k and v, which nothing reads from here on, so that they are one tensor again.
    qkv_grad = attended.qkv
    into = [part.unflatten(1, (-1, head_dim)) for part in qkv_grad.split(layer.qkv.widths, dim=1)]
    into[2].copy_(v_grad)
    if layer.head_norms:
        rotated = (torch.empty_like(q_grad), torch.empty_like(k_grad))
        kernels.rotate(q_grad, k_grad, call.cos, call.sin, rotated, backward=True)
        for grad, part, norm in zip(rotated, into, layer.head_norms, strict=False):
            kernels.rms_norm_grad(grad, part, *norm, residual=None, out=part)
    else:
        kernels.rotate(q_grad, k_grad, call.cos, call.sin, (into[0], into[1]), backward=True)
    _, normed = kernels.rms_norm(kept.x, None, *layer.norms[0])
    normed_grad = layer.qkv.input_grad(qkv_grad) if wants_x else None
    _project_backward(qkv_grad, attended.low_qkv, normed, call.groups[0], call.route, normed_grad)
    if normed_grad is not None:
        kernels.rms_norm_grad(normed_grad, kept.x, *layer.norms[0], residual=h_grad, out=normed_grad)
    return normed_grad


def install(model: nn.Module) -> None:
    """Give every module of a known class its fused forward."""
    for module in list(model.modules()):
        fused = _fused_module(module)
        if fused is not None:
            # On the instance: the module stays where it is, with its parameters, their names and its hooks.
            module.forward = fused  # type: ignore[assignment]


def remove(model: nn.Module) -> None:
    """Undo `install`."""
    for fused in fused_modules(model):
        del fused.module.forward  # the class's forward shows again


def fused_modules(model: nn.Module) -> Iterator[FusedModule]:
    """The fused modules that `install` gave to `model`."""
    for module in model.modules():
        fused = module.__dict__.get("forward")
        if isinstance(fused, FusedModule):
            yield fused


def fused_layers(model: nn.Module) -> Iterator[Layer]:
    """The fused decoder layers of `model`."""
    return (fused for fused in fused_modules(model) if isinstance(fused, Layer))


def _fused_module(module: nn.Module) -> FusedModule | None:
    """The fused forward of `module`; None for modules that it would not reproduce."""
    # A forward on the instance is a wrapper of another library. Outside of transformers, a class of the same
    # name may compute anything.
    if "forward" in module.__dict__ or not type(module).__module__.startswith("transformers.models."):
        return None
    family, kind = _family_and_kind(type(module).__name__)
    if family not in _FAMILIES:
        return None
    if kind == "RMSNorm":
        return Norm(module)
    return Layer(module) if kind == "DecoderLayer" and _is_supported(module) else None


def _family_and_kind(name: str) -> tuple[str, str]:
    """`Qwen2RMSNorm` -> (`Qwen2`, `RMSNorm`); the name and an empty string for other classes."""
    for kind in ("RMSNorm", "DecoderLayer"):
        if name.endswith(kind):
            return name.removesuffix(kind), kind
    return name, ""


def _is_supported(layer: Any) -> bool:
    # A part with a forward on the instance is a wrapper of another library.
    parts = [layer.self_attn, layer.mlp]
    return (
        isinstance(layer.mlp.act_fn, nn.SiLU | _silu_class())
        and not any("forward" in part.__dict__ for part in parts)
        and all(FrozenLinear.supports(layers) for layers in _linear_groups(layer))
    )


def _linear_groups(layer: Any) -> list[list[nn.Linear]]:
    """q/k/v, o, gate/up and down: those with the same input together."""
    block, mlp = layer.self_attn, layer.mlp
    return [
        [block.q_proj, block.k_proj, block.v_proj], [block.o_proj],
        [mlp.gate_proj, mlp.up_proj], [mlp.down_proj],
    ]  # fmt: skip


def _silu_class() -> type[nn.Module]:
    """The class that transformers uses for hidden_act: silu."""
    from transformers.activations import ACT2FN

    return type(ACT2FN["silu"])
