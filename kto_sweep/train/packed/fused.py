"""Modules of a decoder with fewer kernels: norms, attention blocks and gated MLPs of known classes.

A step of a small model waits for kernel launches, that of a large one for memory traffic; both come from
elementwise work. `install` gives the modules that it knows another forward with the same result:

    norm       one kernel
    attention  q, k and v with their adapters as one function, rotary positions in one kernel
    MLP        one function; of its wide tensors only gate and up are kept for the backward

A module falls back on its original forward where this one does not cover the case: dropout in the adapters,
8-bit layers, adapters on some of its layers only. compatibility.py compares every model's log-probs.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kto_sweep.train.packed import kernels
from kto_sweep.train.packed.attention import attend
from kto_sweep.train.packed.kernels import dense_weight, has_dense_weight
from kto_sweep.train.packed.lora_product import (
    AdapterGroup,
    TokenRouting,
    add_low_rank,
    group_backward,
    low_rank_products,
)

_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
"""Models of transformers whose layers compute what the classes below do."""


class Adapters(Protocol):
    """The adapters on a model, as its fused modules see them."""

    anchor: Tensor
    """Requires a gradient: it makes the first layer's products differentiable."""

    @property
    def route(self) -> TokenRouting | None:
        """Which tokens of the current forward use which slot; None while the adapters are inactive."""

    def group(self, layers: Sequence[nn.Linear]) -> AdapterGroup | None:
        """The adapters of layers with one input; None when some layer has none."""


class FusedModule:
    """Another forward of one module, with the same arguments and result."""

    # Not an nn.Module: assigned to `module.forward`, that would be registered as a submodule, and the
    # class's forward would still run.

    def __init__(self, module: nn.Module, layer_groups: Sequence[Sequence[nn.Linear]]) -> None:
        self.module = module
        self.original_forward: Callable[..., Any] = partial(type(module).forward, module)
        self.layer_groups = layer_groups
        """The module's linear layers; those with the same input form a group."""
        self._adapters: list[tuple[Adapters, list[AdapterGroup | None]]] = []

    def attach_adapters(self, adapters: Adapters) -> None:
        """Apply `adapters` in every forward for which they have a route."""
        # Grouped now, not in each forward: views of one buffer stay valid while the weights change in it.
        self._adapters.append((adapters, [adapters.group(layers) for layers in self.layer_groups]))

    def detach_adapters(self, adapters: Adapters) -> None:
        """Undo `attach_adapters`."""
        self._adapters = [each for each in self._adapters if each[0] is not adapters]

    def active_adapters(self) -> tuple[Adapters | None, list[AdapterGroup | None]] | None:
        """The active adapters and their group for each layer group; without active ones, all None.

        None when the fused forward does not cover them.
        """
        active = [each for each in self._adapters if each[0].route is not None]
        if not active:  # the base model, which gives the reference log-probs
            return None, [None] * len(self.layer_groups)
        adapters, groups = active[0]
        route = adapters.route
        # The backwards below take one set of adapters per layer and no dropout mask. The original forward
        # supports both, since it calls the layers, and with them the adapters' hooks.
        covered = len(active) == 1 and route is not None and route.noise is None and None not in groups
        return active[0] if covered else None


class Attention(FusedModule):
    """A self-attention block: projections, rotary positions, packed attention, output projection."""

    def __init__(self, module: Any) -> None:
        super().__init__(module, [[module.q_proj, module.k_proj, module.v_proj], [module.o_proj]])
        # Mistral's blocks read their window from the configuration.
        source = module.config if type(module).__name__.startswith("Mistral") else module
        self._window: int | None = getattr(source, "sliding_window", None)

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """(1, tokens, hidden) -> (1, tokens, hidden), and no weights.

        `position_embeddings`: cos and sin, (1, tokens, head dim) each.
        """
        module: Any = self.module
        active, packing = self.active_adapters(), options.get("packing")
        if active is None or packing is None or position_embeddings is None or attention_mask is not None:
            # By name: the argument that a packed forward leaves empty, the cache, was renamed once.
            out: tuple[Tensor, None] = self.original_forward(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                **options,
            )
            return out
        adapters, (qkv_group, o_group) = active
        tokens = hidden_states.shape[1]
        # Heads are counted by the view: (tokens, heads, head dim) of q, fewer heads of k and v. No transpose
        # to heads first: varlen kernels read this layout.
        q, k, v = (
            x.view(tokens, -1, module.head_dim)
            for x in project(hidden_states[0], self.layer_groups[0], qkv_group, adapters)
        )
        if hasattr(module, "q_norm"):  # Qwen3: per head, before the rotation
            q, k = module.q_norm(q), module.k_norm(k)
        cos, sin = position_embeddings
        q, k = _Rotation.apply(q, k, cos[0], sin[0])  # type: ignore[no-untyped-call]
        attended = attend(module, q, k, v, packing, scaling=module.scaling, window=self._window)
        (output,) = project(attended.reshape(tokens, -1), self.layer_groups[1], o_group, adapters)
        return output[None], None


class Mlp(FusedModule):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)"""

    def __init__(self, module: Any) -> None:
        super().__init__(module, [[module.gate_proj, module.up_proj], [module.down_proj]])

    def __call__(self, x: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden)."""
        active = self.active_adapters()
        if active is None:
            original: Tensor = self.original_forward(x)
            return original
        adapters, groups = active
        out: Tensor = _GatedMlp.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, x.shape[-1]), _anchor(adapters), self.layer_groups, groups, _route(adapters)
        )
        return out.view(*x.shape[:-1], out.shape[-1])


class Norm(FusedModule):
    """x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467)"""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, [])

    def __call__(self, x: Tensor) -> Tensor:
        """(..., features) -> (..., features)."""
        module: Any = self.module
        if x.dtype != module.weight.dtype:  # torch's fused kernel takes one dtype
            original: Tensor = self.original_forward(x)
            return original
        # transformers casts, squares, averages, scales and casts back in a kernel each, and keeps float32
        # copies of x for the backward; this kernel sums in float32 inside.
        return F.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)


def install(model: nn.Module) -> None:
    """Give every module of a known class its fused forward."""
    for module in model.modules():
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


def _fused_module(module: nn.Module) -> FusedModule | None:
    """The fused forward of `module`; None for modules that it would not reproduce."""
    # A forward on the instance is a wrapper of another library. Outside of transformers, a class of the same
    # name may compute anything.
    if "forward" in module.__dict__ or not type(module).__module__.startswith("transformers.models."):
        return None
    family, kind = _family_and_kind(type(module).__name__)
    if family not in _FAMILIES:
        return None
    fused: FusedModule
    if kind == "RMSNorm":
        fused = Norm(module)
    elif kind == "Attention":
        fused = Attention(module)
    elif kind == "MLP" and isinstance(getattr(module, "act_fn", None), nn.SiLU | _silu_class()):
        fused = Mlp(module)
    else:
        return None
    supported = all(has_dense_weight(layer) for layers in fused.layer_groups for layer in layers)
    return fused if supported else None


def _family_and_kind(name: str) -> tuple[str, str]:
    """`Qwen2MLP` -> (`Qwen2`, `MLP`); the name and an empty string for other classes."""
    for kind in ("RMSNorm", "Attention", "MLP"):
        if name.endswith(kind):
            return name.removesuffix(kind), kind
    return name, ""


def _silu_class() -> type[nn.Module]:
    """The class that transformers uses for hidden_act: silu."""
    from transformers.activations import ACT2FN

    return type(ACT2FN["silu"])


def _anchor(adapters: Adapters | None) -> Tensor | None:
    return None if adapters is None else adapters.anchor


def _route(adapters: Adapters | None) -> TokenRouting | None:
    return None if adapters is None else adapters.route


def project(
    x: Tensor, layers: Sequence[nn.Linear], group: AdapterGroup | None, adapters: Adapters | None
) -> tuple[Tensor, ...]:
    """Each layer's output, (tokens, out), for x (tokens, in), adapters included."""
    outs: tuple[Tensor, ...] = _Projection.apply(  # type: ignore[no-untyped-call]
        x, _anchor(adapters), layers, group, _route(adapters)
    )
    return outs


def _linear(
    x: Tensor, layers: Sequence[nn.Linear], group: AdapterGroup | None, route: TokenRouting | None
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Outputs of the layers, (tokens, out) each, for x (tokens, in), and x A^T, (tokens, layers * rank).

    x A^T is for the backward; None without adapters.
    """
    # The weights and not the layers: the layers' hooks would add the adapters a second time.
    outs = tuple(F.linear(x, dense_weight(layer), layer.bias) for layer in layers)
    if group is None or route is None:
        return outs, None
    # The A of all layers are adjacent in memory, so one product reads x once for all of them.
    low = low_rank_products(x, group, route)
    for part, out, b in zip(low.split(group.rank, dim=1), outs, group.b, strict=True):
        # In place: (tokens, out) once, where a separate adapter output would need a tensor and an addition.
        add_low_rank(out, part, b, route)
    return outs, low


def _linear_input_grad(grads: Sequence[Tensor], layers: Sequence[nn.Linear]) -> Tensor:
    """Gradient of the layers' shared input, (tokens, in), from those of their outputs, (tokens, out) each."""
    # Frozen weights have no gradient, so this is the base layers' whole backward. 4-bit weights are unpacked
    # again: kept from the forward, they would be the model in 16 bits.
    total = grads[0] @ dense_weight(layers[0])
    for grad, layer in zip(grads[1:], layers[1:], strict=True):
        # addmm_ adds up inside the product; autograd would make one (tokens, in) tensor per layer.
        total.addmm_(grad, dense_weight(layer))
    return total


class _Projection(torch.autograd.Function):
    """Linear layers with one input, and their adapters. Saves x once, and sums its gradient in place."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        _anchor: Tensor | None,
        layers: Sequence[nn.Linear],
        group: AdapterGroup | None,
        route: TokenRouting | None,
    ) -> tuple[Tensor, ...]:
        """(tokens, in) -> (tokens, out) of each layer.

        `_anchor` requires a gradient when x, from the frozen embedding, does not: backward then still runs.
        """
        outs, low = _linear(x, layers, group, route)
        ctx.save_for_backward(x, low)  # low is small and saves the backward a product with x
        ctx.layers, ctx.group, ctx.route = layers, group, route
        return outs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        """Gradient of x, (tokens, in); those of A and B go to the group's float32 buffers."""
        x, low = ctx.saved_tensors
        # Gradients of q, k and v may be strided views; grouped kernels want whole rows.
        grads = tuple(grad.contiguous() for grad in grads)
        # The first layer's x comes from the frozen embedding and needs no gradient.
        total = _linear_input_grad(grads, ctx.layers) if ctx.needs_input_grad[0] else None
        if low is not None:
            low_grad = group_backward(grads, low, ctx.group, ctx.route)
            ctx.group.add_a_grad(low_grad, x, ctx.route)
            if total is not None:
                # x reaches the outputs through A as well; added in place to the base layers' part.
                add_low_rank(total, low_grad, ctx.group.a, ctx.route)
        return total, None, None, None, None


class _GatedMlp(torch.autograd.Function):
    """`Mlp` with its adapters. Saves x, (tokens, hidden), gate and up, (tokens, intermediate) each.

    Autograd, operation by operation, would keep silu(gate) and silu(gate) * up too: twice the wide tensors.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        _anchor: Tensor | None,
        layer_groups: Sequence[Sequence[nn.Linear]],
        groups: Sequence[AdapterGroup | None],
        route: TokenRouting | None,
    ) -> Tensor:
        """(tokens, hidden) -> (tokens, hidden); `layer_groups` are [gate, up] and [down]."""
        (gate, up), low_in = _linear(x, layer_groups[0], groups[0], route)
        # The input of down is freed after this line: the backward computes it again from gate and up.
        (out,), low_out = _linear(kernels.swiglu(gate, up), layer_groups[1], groups[1], route)
        ctx.save_for_backward(x, gate, up, low_in, low_out)
        ctx.layer_groups, ctx.groups, ctx.route = layer_groups, groups, route
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        """Gradient of x, (tokens, hidden); those of A and B go to the groups' float32 buffers."""
        x, gate, up, low_in, low_out = ctx.saved_tensors
        (in_layers, out_layers), (in_group, out_group), route = ctx.layer_groups, ctx.groups, ctx.route
        grad = grads[0].contiguous()
        wide_grad = _linear_input_grad([grad], out_layers)  # of down's input: (tokens, intermediate)
        low_grad = None
        if low_out is not None:
            low_grad = group_backward([grad], low_out, out_group, route)
            # Before swiglu_grads, which takes the whole gradient of down's input: through down and its A.
            add_low_rank(wide_grad, low_grad, out_group.a, route)
        # A single kernel on GPUs: it reads gate and up once for both gradients and for down's input.
        *wide_grads, activated = kernels.swiglu_grads(gate, up, wide_grad)
        if low_grad is not None:
            # Only now: down's A needs down's input, which did not exist until the line before.
            out_group.add_a_grad(low_grad, activated, route)
        # Two of the widest tensors; freed before the products below allocate, which lowers the peak.
        del wide_grad, activated
        total = _linear_input_grad(wide_grads, in_layers) if ctx.needs_input_grad[0] else None
        if low_in is not None:
            low_grad = group_backward(wide_grads, low_in, in_group, route)
            in_group.add_a_grad(low_grad, x, route)
            if total is not None:
                add_low_rank(total, low_grad, in_group.a, route)
        return total, None, None, None, None


class _Rotation(torch.autograd.Function):
    """Rotary positions of q and k, (tokens, heads, head dim) each; cos and sin (tokens, head dim)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        # A rotation is linear in q and k: its gradient needs neither, and they are not kept.
        ctx.save_for_backward(cos, sin)
        return kernels.rotate(q, k, cos, sin, backward=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        q, k = kernels.rotate(grads[0], grads[1], *ctx.saved_tensors, backward=True)
        return q, k, None, None  # cos and sin come from positions alone
