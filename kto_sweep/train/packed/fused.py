"""Parts of a decoder rewritten with fewer kernels: norms, attention blocks and gated MLPs of known classes.

A step of a small model waits for kernel launches, that of a large one for memory traffic; both come from
elementwise work. `install` gives the modules that it knows another forward with the same result:

    norm       one kernel
    attention  q, k and v with their adapters as one function, rotary positions in one kernel
    MLP        one function; of its wide tensors only gate and up are kept for the backward

A module falls back on its own forward where this one does not cover the case: dropout in the adapters,
8-bit layers, adapters on some of its layers only. train/support.py compares every model's log-probs.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kto_sweep.train.packed import kernels
from kto_sweep.train.packed.attention import attend
from kto_sweep.train.packed.kernels import has_matrix, matrix
from kto_sweep.train.packed.lora_product import (
    AdapterGroup,
    TokenRouting,
    add_low_rank,
    group_backward,
    low_rank_products,
)

_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
"""Models of transformers whose layers are of the usual kind."""


class Adapters(Protocol):
    """The adapters on a model, as its parts see them."""

    anchor: Tensor
    """Requires a gradient: it makes the first layer's products differentiable."""

    @property
    def route(self) -> TokenRouting | None:
        """Where the present forward's tokens go; None while adapters take no part."""

    def group(self, layers: Sequence[nn.Linear]) -> AdapterGroup | None:
        """The adapters of layers with one input; None when some layer has none."""


class Part:
    """Another forward of one module; `sharing`: its linear layers, those with the same input together."""

    def __init__(self, module: nn.Module, sharing: Sequence[Sequence[nn.Linear]]) -> None:
        self.module = module
        self.own: Callable[..., Any] = partial(type(module).forward, module)
        """The module's own forward."""
        self.sharing = sharing
        self._adapters: list[tuple[Adapters, list[AdapterGroup | None]]] = []

    def adapt(self, adapters: Adapters) -> None:
        """Let `adapters` take part, whenever they have a route."""
        self._adapters.append((adapters, [adapters.group(layers) for layers in self.sharing]))

    def forget(self, adapters: Adapters) -> None:
        """Undo `adapt`."""
        self._adapters = [each for each in self._adapters if each[0] is not adapters]

    def use(self) -> tuple[Adapters | None, list[AdapterGroup | None]] | None:
        """The adapters that take part now and their groups; None when this forward does not cover them."""
        active = [each for each in self._adapters if each[0].route is not None]
        if not active:
            return None, [None] * len(self.sharing)
        adapters, groups = active[0]
        route = adapters.route
        covered = len(active) == 1 and route is not None and route.noise is None and None not in groups
        return active[0] if covered else None


class Attention(Part):
    """A self-attention block: projections, rotary positions, packed attention, output projection."""

    def __init__(self, module: Any) -> None:
        super().__init__(module, [[module.q_proj, module.k_proj, module.v_proj], [module.o_proj]])
        # Mistral's blocks read their window from the configuration.
        told = module.config if type(module).__name__.startswith("Mistral") else module
        self._window: int | None = getattr(told, "sliding_window", None)

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """As the module's own: (1, tokens, hidden) and no weights."""
        module: Any = self.module
        used, packing = self.use(), options.get("packing")
        if used is None or packing is None or position_embeddings is None or attention_mask is not None:
            # By name: the argument that a packed forward leaves empty, the cache, was renamed once.
            out: tuple[Tensor, None] = self.own(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                **options,
            )
            return out
        adapters, (inputs, output) = used
        tokens = hidden_states.shape[1]
        q, k, v = (
            x.view(tokens, -1, module.head_dim)
            for x in project(hidden_states[0], self.sharing[0], inputs, adapters)
        )
        if hasattr(module, "q_norm"):
            q, k = module.q_norm(q), module.k_norm(k)
        cos, sin = position_embeddings
        q, k = _Rotation.apply(q, k, cos[0], sin[0])  # type: ignore[no-untyped-call]
        seen = attend(module, q, k, v, packing, scaling=module.scaling, window=self._window)
        (mixed,) = project(seen.reshape(tokens, -1), self.sharing[1], output, adapters)
        return mixed[None], None


class Mlp(Part):
    """down(silu(gate(x)) * up(x))"""

    def __init__(self, module: Any) -> None:
        super().__init__(module, [[module.gate_proj, module.up_proj], [module.down_proj]])

    def __call__(self, x: Tensor) -> Tensor:
        """As the module's own: (..., hidden)."""
        used = self.use()
        if used is None:
            own: Tensor = self.own(x)
            return own
        adapters, groups = used
        out: Tensor = _GatedMlp.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, x.shape[-1]), _anchor(adapters), self.sharing, groups, _route(adapters)
        )
        return out.view(*x.shape[:-1], out.shape[-1])


class Norm(Part):
    """x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467)"""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, [])

    def __call__(self, x: Tensor) -> Tensor:
        """As the module's own: (..., features)."""
        module: Any = self.module
        if x.dtype != module.weight.dtype:
            own: Tensor = self.own(x)
            return own
        return F.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)


def install(model: nn.Module) -> None:
    """Give every module of a known class its other forward."""
    for module in model.modules():
        part = _part(module)
        if part is not None:
            module.forward = part  # type: ignore[assignment]


def remove(model: nn.Module) -> None:
    """Undo `install`."""
    for part in parts(model):
        del part.module.forward


def parts(model: nn.Module) -> Iterator[Part]:
    """The parts of `model` that are installed."""
    for module in model.modules():
        part = module.__dict__.get("forward")
        if isinstance(part, Part):
            yield part


def _part(module: nn.Module) -> Part | None:
    if "forward" in module.__dict__ or not type(module).__module__.startswith("transformers.models."):
        return None
    family, kind = _split(type(module).__name__)
    if family not in _FAMILIES:
        return None
    made: Part
    if kind == "RMSNorm":
        made = Norm(module)
    elif kind == "Attention":
        made = Attention(module)
    elif kind == "MLP" and isinstance(getattr(module, "act_fn", None), nn.SiLU | _silu_class()):
        made = Mlp(module)
    else:
        return None
    known = all(has_matrix(layer) for layers in made.sharing for layer in layers)
    return made if known else None


def _split(name: str) -> tuple[str, str]:
    for kind in ("RMSNorm", "Attention", "MLP"):
        if name.endswith(kind):
            return name.removesuffix(kind), kind
    return name, ""


def _silu_class() -> type[nn.Module]:
    """What transformers uses for hidden_act: silu."""
    from transformers.activations import ACT2FN

    return type(ACT2FN["silu"])


def _anchor(adapters: Adapters | None) -> Tensor | None:
    return None if adapters is None else adapters.anchor


def _route(adapters: Adapters | None) -> TokenRouting | None:
    return None if adapters is None else adapters.route


def project(
    x: Tensor, layers: Sequence[nn.Linear], group: AdapterGroup | None, adapters: Adapters | None
) -> tuple[Tensor, ...]:
    """Each layer's output for x (tokens, in), adapters included."""
    outs: tuple[Tensor, ...] = _Projection.apply(  # type: ignore[no-untyped-call]
        x, _anchor(adapters), layers, group, _route(adapters)
    )
    return outs


def _linear(
    x: Tensor, layers: Sequence[nn.Linear], group: AdapterGroup | None, route: TokenRouting | None
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Outputs of the layers, and the adapters' low products for the backward."""
    outs = tuple(F.linear(x, matrix(layer), layer.bias) for layer in layers)
    if group is None or route is None:
        return outs, None
    low = low_rank_products(x, group, route)
    for part, out, b in zip(low.split(group.rank, dim=1), outs, group.b, strict=True):
        add_low_rank(out, part, b, route)
    return outs, low


def _linear_input_grad(grads: Sequence[Tensor], layers: Sequence[nn.Linear]) -> Tensor:
    total = grads[0] @ matrix(layers[0])
    for grad, layer in zip(grads[1:], layers[1:], strict=True):
        total.addmm_(grad, matrix(layer))
    return total


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        _anchor: Tensor | None,
        layers: Sequence[nn.Linear],
        group: AdapterGroup | None,
        route: TokenRouting | None,
    ) -> tuple[Tensor, ...]:
        outs, low = _linear(x, layers, group, route)
        ctx.save_for_backward(x, low)
        ctx.layers, ctx.group, ctx.route = layers, group, route
        return outs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        x, low = ctx.saved_tensors
        grads = tuple(grad.contiguous() for grad in grads)
        total = _linear_input_grad(grads, ctx.layers) if ctx.needs_input_grad[0] else None
        if low is not None:
            low_grad = group_backward(grads, low, ctx.group, ctx.route)
            ctx.group.add_a_grad(low_grad, x, ctx.route)
            if total is not None:
                add_low_rank(total, low_grad, ctx.group.a, ctx.route)
        return total, None, None, None, None


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        _anchor: Tensor | None,
        sharing: Sequence[Sequence[nn.Linear]],
        groups: Sequence[AdapterGroup | None],
        route: TokenRouting | None,
    ) -> Tensor:
        (gate, up), low_in = _linear(x, sharing[0], groups[0], route)
        (out,), low_out = _linear(kernels.swiglu(gate, up), sharing[1], groups[1], route)
        ctx.save_for_backward(x, gate, up, low_in, low_out)
        ctx.sharing, ctx.groups, ctx.route = sharing, groups, route
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        x, gate, up, low_in, low_out = ctx.saved_tensors
        (inner, outer), (above, below), route = ctx.sharing, ctx.groups, ctx.route
        grad = grads[0].contiguous()
        wide_grad = _linear_input_grad([grad], outer)
        low_grad = None
        if low_out is not None:
            low_grad = group_backward([grad], low_out, below, route)
            add_low_rank(wide_grad, low_grad, below.a, route)
        *wide, activated = kernels.swiglu_grads(gate, up, wide_grad)
        if low_grad is not None:
            below.add_a_grad(low_grad, activated, route)
        del wide_grad, activated  # two of the widest tensors of all
        total = _linear_input_grad(wide, inner) if ctx.needs_input_grad[0] else None
        if low_in is not None:
            low_grad = group_backward(wide, low_in, above, route)
            above.add_a_grad(low_grad, x, route)
            if total is not None:
                add_low_rank(total, low_grad, above.a, route)
        return total, None, None, None, None


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return kernels.rotate(q, k, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        q, k = kernels.rotate(grads[0], grads[1], *ctx.saved_tensors, back=True)
        return q, k, None, None
