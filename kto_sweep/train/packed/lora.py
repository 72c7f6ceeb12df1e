"""The LoRA adapters (arXiv 2106.09685) of all slots on one frozen base model: one row of parameters per slot.

Each linear layer that any slot adapts has A of shape (slots, rank, in) and B of (slots, rank, out), views of
one buffer. A slot with a smaller rank, or without adapters on a layer, has zeros there. Where A and B are
both zero their gradients are zero too, so they stay zero. Adapters take part in a forward only inside
`routed`; outside, the model is the base model, which is the reference.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kto_sweep.data.keys import hash64
from kto_sweep.models.model_checks import ALL_LINEAR
from kto_sweep.train.lora_targets import Targets, find_targets
from kto_sweep.train.packed import fused
from kto_sweep.train.packed.lora_product import AdaptedLayer, AdapterGroup, TokenRouting, adapter_product
from kto_sweep.train.packed.optim import BLOCK
from kto_sweep.train.packed.pack import Pack


@dataclass(frozen=True)
class AdapterSpec:
    """One slot's adapters."""

    rank: int
    alpha: float
    """The product of A and B is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Probability with which an input feature of the adapters is zeroed in training."""
    targets: Targets = ALL_LINEAR
    seed: int = 0

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank


class AdapterLayout:
    """Places of each layer's A and B in a slot's row: all A first, then all B.

    Each starts at a whole block of the optimizer's 8-bit moments, and a smaller rank has its values at the
    same places from there. So a slot's quantisation does not depend on the largest rank in the engine.
    """

    def __init__(self, sizes: Mapping[str, tuple[int, int]], rank: int) -> None:
        # Grouped kernels need rows that start at multiples of 16 bytes: 8 values in bf16.
        self.rank = math.ceil(rank / 8) * 8
        self.sizes = dict(sizes)
        """(in, out) features by layer."""
        self._a: dict[str, int] = {}
        self._b: dict[str, int] = {}
        at = 0
        for name, (features_in, _) in self.sizes.items():
            self._a[name] = at
            at += _whole_blocks(self.rank * features_in)
        # A first: the gradients of all A are scaled in one slice (see take_grads).
        self.b_start = at
        for name, (_, features_out) in self.sizes.items():
            self._b[name] = at
            at += _whole_blocks(self.rank * features_out)
        self.parameters = at

    def a(self, flat: Tensor, name: str) -> Tensor:
        """A of one layer: a (slots, rank, in) view of `flat` (slots, parameters)."""
        features_in = self.sizes[name][0]
        block = flat.narrow(1, self._a[name], self.rank * features_in)
        return block.view(flat.shape[0], self.rank, features_in)

    def adjoin(self, names: Sequence[str]) -> bool:
        """Whether the A of these layers are consecutive, without a gap from rounding to blocks."""
        rows = [self.rank * self.sizes[name][0] for name in names]
        return all(
            self._a[after] == self._a[name] + size
            for name, size, after in zip(names[:-1], rows[:-1], names[1:], strict=True)
        )

    def joint_a(self, flat: Tensor, names: Sequence[str]) -> Tensor:
        """A of consecutive layers as one view: (slots, layers * rank, in)."""
        features_in, rows = self.sizes[names[0]][0], self.rank * len(names)
        block = flat.narrow(1, self._a[names[0]], rows * features_in)
        return block.view(flat.shape[0], rows, features_in)

    def b(self, flat: Tensor, name: str) -> Tensor:
        """B of one layer: a (slots, rank, out) view of `flat` (slots, parameters)."""
        features_out = self.sizes[name][1]
        block = flat.narrow(1, self._b[name], self.rank * features_out)
        return block.view(flat.shape[0], self.rank, features_out)

    def take(self, row: Tensor, names: Iterable[str], rank: int) -> dict[str, Tensor]:
        """Copies of a slot's tensors from its row (parameters,), without padding and in PEFT's shapes.

        `name.lora_A` (rank, in), `name.lora_B` (out, rank).
        """
        tensors = {}
        for name in names:
            tensors[f"{name}.lora_A"] = self.a(row[None], name)[0, :rank].clone()
            tensors[f"{name}.lora_B"] = self.b(row[None], name)[0, :rank].t().clone()
        return tensors

    def put(self, tensors: Mapping[str, Tensor], device: torch.device) -> Tensor:
        """A row (parameters,) with `tensors`, named and shaped as by `take`, and zeros elsewhere."""
        row = torch.zeros(1, self.parameters, device=device)
        for key, tensor in tensors.items():
            name, _, which = key.rpartition(".")
            view, values = (
                (self.a(row, name), tensor) if which == "lora_A" else (self.b(row, name), tensor.t())
            )
            view[0, : len(values)] = values  # a smaller rank leaves zeros below
        return row[0]


def _whole_blocks(size: int) -> int:
    return math.ceil(size / BLOCK) * BLOCK


class AdapterStack:
    """Adapters for `slots` slots on `model`, attached to it until `detach`."""

    def __init__(self, model: PreTrainedModel, slots: int, rank: int, targets: Iterable[Targets]) -> None:
        """Allocate adapters up to `rank` on every layer that one of `targets` names.

        Raises UsageError for a target that no layer has, torch.OutOfMemoryError.
        """
        self.model = model
        self._names: dict[Targets, tuple[str, ...]] = {}
        layers: dict[str, nn.Linear] = {}
        for names in targets:
            layers |= find_targets(model, names)
        # The union of all slots' layers: a slot with fewer has zeros on the others.
        self.layout = AdapterLayout(
            {name: (m.in_features, m.out_features) for name, m in layers.items()}, rank
        )
        embedding: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
        self.device: torch.device = embedding.device
        self.dtype: torch.dtype = embedding.dtype
        self.slots = slots
        self.specs: list[AdapterSpec | None] = [None] * slots
        shape = (slots, self.layout.parameters)
        self.weights = torch.zeros(shape, device=self.device)
        """(slots, parameters), float32: in bf16 most updates would be rounded away."""
        self.grads = torch.zeros(shape, device=self.device)
        """(slots, parameters), float32: sums over the backward passes of a step."""
        self._used = torch.zeros(shape, device=self.device, dtype=self.dtype)
        """(slots, parameters): the weights for forwards, in the model's precision, A multiplied by alpha /
        rank. Scaled here once per step instead of the (tokens, out) product in every layer."""
        self._scales = torch.zeros(slots, 1, device=self.device)
        # The only tensor of the adapters that autograd knows: it makes every adapter product differentiable,
        # although neither the frozen model's embeddings nor A and B require a gradient.
        self.anchor = torch.zeros(1, device=self.device, requires_grad=True)
        self._route: TokenRouting | None = None
        self._sites = {layer: self._site(name, layer) for name, layer in layers.items()}
        # Layers outside fused modules get their adapters by a hook.
        self._hooks = [layer.register_forward_hook(self._hook(site)) for layer, site in self._sites.items()]
        self._fused_layers = list(fused.fused_layers(model))
        for fused_layer in self._fused_layers:
            fused_layer.attach_adapters(self)

    def _site(self, name: str, layer: nn.Linear) -> AdaptedLayer:
        # From the layer's name: dropout does not depend on the other layers that have adapters.
        keys = hash64(hash64(np.int64(zlib.crc32(name.encode()))) + np.arange(layer.in_features))
        return AdaptedLayer(
            name=name,
            a=self.layout.a(self._used, name),
            b=self.layout.b(self._used, name),
            a_grad=self.layout.a(self.grads, name),
            b_grad=self.layout.b(self.grads, name),
            feature_noise=torch.from_numpy(keys & 0x7FFFFFFF).to(self.device, torch.int32),
        )

    def _hook(self, site: AdaptedLayer) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        def add_adapters(_layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if self._route is None:
                return None  # the base model: as if there were no hook
            return output + adapter_product(inputs[0], self.anchor, site, self._route).to(output.dtype)

        return add_adapters

    def detach(self) -> None:
        """Restore the model."""
        for hook in self._hooks:
            hook.remove()
        for fused_layer in self._fused_layers:
            fused_layer.detach_adapters(self)

    @property
    def route(self) -> TokenRouting | None:
        """The routing of the current forward; None outside `routed`."""
        return self._route

    def groups(self, layers: Sequence[Sequence[nn.Linear]]) -> list[AdapterGroup | None] | None:
        """The adapters of each group of layers with one input, None for a group without any.

        None in place of the list if the A of a group are not consecutive.
        """
        groups: list[AdapterGroup | None] = []
        for group in layers:
            ends = np.cumsum([layer.out_features for layer in group]).tolist()
            sites = [
                (self._sites[x], (end - x.out_features, end))
                for x, end in zip(group, ends, strict=True)
                if x in self._sites
            ]
            names = [site.name for site, _ in sites]
            if not self.layout.adjoin(names):
                return None
            if not sites:
                groups.append(None)
                continue
            a, a_grad = (self.layout.joint_a(flat, names) for flat in (self._used, self.grads))
            b, b_grad = [site.b for site, _ in sites], [site.b_grad for site, _ in sites]
            groups.append(AdapterGroup(a, a_grad, b, b_grad, [columns for _, columns in sites]))
        return groups

    def fits(self, spec: AdapterSpec) -> bool:
        """Whether a slot has room for these adapters."""
        return spec.rank <= self.layout.rank and self.layout.sizes.keys() >= set(self.names(spec))

    def names(self, spec: AdapterSpec) -> tuple[str, ...]:
        """The layers with these adapters. Raises UsageError for a name that no layer has."""
        if spec.targets not in self._names:
            self._names[spec.targets] = tuple(find_targets(self.model, spec.targets))
        return self._names[spec.targets]

    @torch.no_grad()
    def start(self, slot: int, spec: AdapterSpec, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Initialise the adapters of `slot`, or set them to `tensors`; other slots do not change."""
        if tensors is None:
            tensors = self._fresh(spec)
        self.specs[slot] = spec
        # Also zeroes what an earlier trial left at a larger rank or on other layers.
        self.weights[slot] = self.layout.put(tensors, self.device)
        self.grads[slot] = 0
        self._scales[slot] = spec.scale
        self.refresh()

    def _fresh(self, spec: AdapterSpec) -> dict[str, Tensor]:
        """PEFT's initialisation: A uniform within 1 / sqrt(in) (kaiming_uniform with a = sqrt(5)), B zero."""
        tensors = {}
        for name in self.names(spec):
            features_in, features_out = self.layout.sizes[name]
            # One generator per layer: its values depend on the seed and its name, not on the other targets.
            seed = int(hash64(np.int64(spec.seed) ^ hash64(np.int64(zlib.crc32(name.encode()))))[0])
            generator = torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
            bound = features_in**-0.5
            tensors[f"{name}.lora_A"] = torch.empty(spec.rank, features_in).uniform_(
                -bound, bound, generator=generator
            )
            tensors[f"{name}.lora_B"] = torch.zeros(features_out, spec.rank)
        return tensors

    @torch.no_grad()
    def stop(self, slot: int) -> None:
        """Empty `slot`."""
        self.specs[slot] = None
        # Zeros keep the slot neutral: grouped kernels and the optimizer still pass over its row.
        self.weights[slot] = 0
        self.grads[slot] = 0
        self._scales[slot] = 0

    def tensors(self, slot: int) -> dict[str, Tensor]:
        """The slot's adapters as `start` takes them, on the host. Raises ValueError for an empty slot."""
        spec = self.specs[slot]
        if spec is None:
            raise ValueError(f"slot {slot} is empty")
        return self.layout.take(self.weights[slot].to("cpu", copy=True), self.names(spec), spec.rank)

    @torch.no_grad()
    def refresh(self) -> None:
        """Make forwards use the current weights; call it after every update."""
        split = self.layout.b_start
        # In place: the adapters' views point into this buffer.
        torch.mul(self.weights[:, :split], self._scales, out=self._used[:, :split])
        self._used[:, split:].copy_(self.weights[:, split:])

    @torch.no_grad()
    def take_grads(self) -> Tensor:
        """Gradients of `weights`, (slots, parameters); valid once, until `clear_grads`."""
        # Forwards use scale * A, and the buffers have its gradient: the chain rule's factor is missing.
        self.grads[:, : self.layout.b_start].mul_(self._scales)
        return self.grads

    def clear_grads(self) -> None:
        """Set the gradients to 0, before a step's first backward."""
        self.grads.zero_()

    @contextmanager
    def routed(self, pack: Pack, *, training: bool) -> Iterator[None]:
        """Adapters take part in forwards of `pack`, and in their backwards, which must be in this block too.

        Dropout only with `training`. Blocks can be nested: the mismatched pass runs inside the matched one's.
        """
        before, self._route = self._route, self._make_route(pack, training)
        try:
            yield
        finally:
            self._route = before

    def _make_route(self, pack: Pack, training: bool) -> TokenRouting:
        chances = [(self.specs[slot] or AdapterSpec(1, 1)).dropout for slot, _, _ in pack.slot_spans]
        if not training or not any(chances):
            return TokenRouting(pack.slot_spans, pack.slot_ends)
        # Per token, not per slot: one elementwise kernel drops for all slots.
        threshold = torch.empty(pack.tokens, 1, dtype=torch.int32, device=self.device)
        scale = torch.empty(pack.tokens, 1, device=self.device)
        for (_, start, end), chance in zip(pack.slot_spans, chances, strict=True):
            threshold[start:end] = int(chance * 2**31)
            scale[start:end] = 1 / (1 - chance)
        # 31 bits: int32 has no unsigned comparison with the threshold.
        noise = (pack.noise & 0x7FFFFFFF).to(torch.int32)[:, None]
        return TokenRouting(pack.slot_spans, pack.slot_ends, noise, threshold, scale)
