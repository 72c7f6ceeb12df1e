"""The adapters of every slot on one frozen base model, stacked: one row of parameters per slot.

Each linear layer that any slot adapts is a site with A of shape (slots, rank, in) and B (slots, rank, out),
views of one buffer; a slot of smaller rank, or that leaves a layer alone, has zeros there, and zeros in A and
B have zero gradients, so they stay zero. Adapters take part in a forward only inside `routed`; outside it the
model is the base model, which is the reference.
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

from kto_sweep.errors import UsageError
from kto_sweep.train.packed import fused
from kto_sweep.train.packed.lora_product import AdaptedLayer, AdapterGroup, TokenRouting, adapter_product
from kto_sweep.train.packed.optim import BLOCK
from kto_sweep.train.packed.pack import Pack, hash64

ALL_LINEAR = "all-linear"

Targets = str | tuple[str, ...]
"""`all-linear`, or last parts of layer names: ("q_proj", "v_proj")."""


@dataclass(frozen=True)
class AdapterSpec:
    """What one slot's adapters are."""

    rank: int
    alpha: float
    """The adapters' product is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Chance that an input feature of the adapters is zeroed in training."""
    targets: Targets = ALL_LINEAR
    seed: int = 0

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank


def find_targets(model: PreTrainedModel, targets: Targets) -> dict[str, nn.Linear]:
    """The linear layers that `targets` names, by full name; the output layer is never one of them.

    Raises UsageError for a name that no layer has, and for the output layer.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    if targets == ALL_LINEAR:
        return linear
    wanted = (targets,) if isinstance(targets, str) else targets
    known = sorted({name.rpartition(".")[2] for name in linear})
    for target in wanted:
        if not any(_named(name, target) for name in linear):
            raise UsageError(
                f"lora_targets: no linear layer of {type(model).__name__} is named {target!r}",
                hint=f"use all-linear, or some of {', '.join(known)}",
            )
    return {name: layer for name, layer in linear.items() if any(_named(name, target) for target in wanted)}


def _named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


class AdapterLayout:
    """Where each site's A and B lie in a slot's row: all A first, then all B.

    Each begins at a whole block of the optimizer's 8-bit moments, and a smaller rank has its values at the
    same places from there: a slot's values share blocks with each other alone, whatever its neighbours have.
    """

    def __init__(self, sizes: Mapping[str, tuple[int, int]], rank: int) -> None:
        # Matmul kernels want rows that begin at multiples of 16 bytes.
        self.rank = math.ceil(rank / 8) * 8
        self.sizes = dict(sizes)
        """(in, out) features by site."""
        self._a: dict[str, int] = {}
        self._b: dict[str, int] = {}
        at = 0
        for name, (features_in, _) in self.sizes.items():
            self._a[name] = at
            at += _whole_blocks(self.rank * features_in)
        self.b_start = at
        for name, (_, features_out) in self.sizes.items():
            self._b[name] = at
            at += _whole_blocks(self.rank * features_out)
        self.parameters = at

    def a(self, flat: Tensor, name: str) -> Tensor:
        """A of one site: (slots, rank, in) of `flat` (slots, parameters)."""
        features_in = self.sizes[name][0]
        block = flat.narrow(1, self._a[name], self.rank * features_in)
        return block.view(flat.shape[0], self.rank, features_in)

    def adjoin(self, names: Sequence[str]) -> bool:
        """Whether the A of these sites lie one after another without a gap."""
        rows = [self.rank * self.sizes[name][0] for name in names]
        return all(
            self._a[after] == self._a[name] + size
            for name, size, after in zip(names[:-1], rows[:-1], names[1:], strict=True)
        )

    def joint_a(self, flat: Tensor, names: Sequence[str]) -> Tensor:
        """A of sites that adjoin: (slots, sites * rank, in)."""
        features_in, rows = self.sizes[names[0]][0], self.rank * len(names)
        block = flat.narrow(1, self._a[names[0]], rows * features_in)
        return block.view(flat.shape[0], rows, features_in)

    def b(self, flat: Tensor, name: str) -> Tensor:
        """B of one site: (slots, rank, out)."""
        features_out = self.sizes[name][1]
        block = flat.narrow(1, self._b[name], self.rank * features_out)
        return block.view(flat.shape[0], self.rank, features_out)

    def take(self, row: Tensor, names: Iterable[str], rank: int) -> dict[str, Tensor]:
        """A slot's tensors out of its row (parameters,), copied, without padding and in PEFT's shapes.

        `name.lora_A` (rank, in), `name.lora_B` (out, rank).
        """
        tensors = {}
        for name in names:
            tensors[f"{name}.lora_A"] = self.a(row[None], name)[0, :rank].clone()
            tensors[f"{name}.lora_B"] = self.b(row[None], name)[0, :rank].t().clone()
        return tensors

    def put(self, tensors: Mapping[str, Tensor], device: torch.device) -> Tensor:
        """A row (parameters,) that holds `tensors`, as `take` names them, and zeros."""
        row = torch.zeros(1, self.parameters, device=device)
        for key, tensor in tensors.items():
            name, _, which = key.rpartition(".")
            view, values = (
                (self.a(row, name), tensor) if which == "lora_A" else (self.b(row, name), tensor.t())
            )
            view[0, : len(values)] = values
        return row[0]


def _whole_blocks(size: int) -> int:
    return math.ceil(size / BLOCK) * BLOCK


class AdapterStack:
    """The adapters of `slots` slots on `model`, attached to it until `detach`."""

    def __init__(self, model: PreTrainedModel, slots: int, rank: int, targets: Iterable[Targets]) -> None:
        """Room for adapters up to `rank` on every layer that one of `targets` names.

        Raises UsageError when a target is no layer of the model.
        """
        self.model = model
        self._names: dict[Targets, tuple[str, ...]] = {}
        layers: dict[str, nn.Linear] = {}
        for each in targets:
            layers |= find_targets(model, each)
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
        """Float32; the optimizer's."""
        self.grads = torch.zeros(shape, device=self.device)
        """Float32; sums over backward passes until `take_grads`."""
        self._used = torch.zeros(shape, device=self.device, dtype=self.dtype)
        """The weights as forwards use them: in the model's precision, A multiplied by alpha / rank."""
        self._scales = torch.zeros(slots, 1, device=self.device)
        self.anchor = torch.zeros(1, device=self.device, requires_grad=True)
        self._route: TokenRouting | None = None
        self._sites = {layer: self._site(name, layer) for name, layer in layers.items()}
        self._hooks = [layer.register_forward_hook(self._hook(site)) for layer, site in self._sites.items()]
        self._parts = list(fused.parts(model))
        for part in self._parts:
            part.adapt(self)

    def _site(self, name: str, layer: nn.Linear) -> AdaptedLayer:
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
                return None
            return output + adapter_product(inputs[0], self.anchor, site, self._route).to(output.dtype)

        return add_adapters

    def detach(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()
        for part in self._parts:
            part.forget(self)

    @property
    def route(self) -> TokenRouting | None:
        """Where the tokens of the present forward go; None outside `routed`."""
        return self._route

    def group(self, layers: Sequence[nn.Linear]) -> AdapterGroup | None:
        """The adapters of layers with the same input; None when a layer has none, or they lie apart."""
        if not all(layer in self._sites for layer in layers):
            return None
        sites = [self._sites[layer] for layer in layers]
        names = [site.name for site in sites]
        if not self.layout.adjoin(names):
            return None
        a, a_grad = (self.layout.joint_a(flat, names) for flat in (self._used, self.grads))
        return AdapterGroup(a, a_grad, [site.b for site in sites], [site.b_grad for site in sites])

    def fits(self, spec: AdapterSpec) -> bool:
        """Whether a slot can hold these adapters."""
        return spec.rank <= self.layout.rank and self.layout.sizes.keys() >= set(self.names(spec))

    def names(self, spec: AdapterSpec) -> tuple[str, ...]:
        """The layers that these adapters are on. Raises UsageError when there is none of a name."""
        if spec.targets not in self._names:
            self._names[spec.targets] = tuple(find_targets(self.model, spec.targets))
        return self._names[spec.targets]

    @torch.no_grad()
    def start(self, slot: int, spec: AdapterSpec, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Give `slot` fresh adapters, or those of `tensors`; the other slots go on undisturbed."""
        if tensors is None:
            tensors = self._fresh(spec)
        self.specs[slot] = spec
        self.weights[slot] = self.layout.put(tensors, self.device)
        self.grads[slot] = 0
        self._scales[slot] = spec.scale
        self.refresh()

    def _fresh(self, spec: AdapterSpec) -> dict[str, Tensor]:
        """A as PEFT begins it (kaiming_uniform with a = sqrt(5): uniform within 1 / sqrt(in)), B zero.

        Each layer has its own generator, so that a layer's start depends on the seed and its name alone.
        """
        tensors = {}
        for name in self.names(spec):
            features_in, features_out = self.layout.sizes[name]
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
        self.weights[slot] = 0
        self.grads[slot] = 0
        self._scales[slot] = 0

    def tensors(self, slot: int) -> dict[str, Tensor]:
        """The slot's adapters as `start` takes them, copied to the host. Raises ValueError if it is empty."""
        spec = self.specs[slot]
        if spec is None:
            raise ValueError(f"slot {slot} is empty")
        return self.layout.take(self.weights[slot].to("cpu", copy=True), self.names(spec), spec.rank)

    @torch.no_grad()
    def refresh(self) -> None:
        """Make forwards use the present weights; call it after every update."""
        split = self.layout.b_start
        torch.mul(self.weights[:, :split], self._scales, out=self._used[:, :split])
        self._used[:, split:].copy_(self.weights[:, split:])

    @torch.no_grad()
    def take_grads(self) -> Tensor:
        """Gradients with respect to `weights`: (slots, parameters). Call `clear_grads` once they are used."""
        self.grads[:, : self.layout.b_start].mul_(self._scales)
        return self.grads

    def clear_grads(self) -> None:
        """Begin the next step's sums."""
        self.grads.zero_()

    @contextmanager
    def routed(self, pack: Pack, *, training: bool) -> Iterator[None]:
        """Adapters take part in forwards over `pack`, and in their backwards, which must run in here too.

        Dropout only with `training`. A block inside another one puts the outer one's routing back at its end.
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
        threshold = torch.empty(pack.tokens, 1, dtype=torch.int32, device=self.device)
        scale = torch.empty(pack.tokens, 1, device=self.device)
        for (_, start, end), chance in zip(pack.slot_spans, chances, strict=True):
            threshold[start:end] = int(chance * 2**31)
            scale[start:end] = 1 / (1 - chance)
        noise = (pack.noise & 0x7FFFFFFF).to(torch.int32)[:, None]
        return TokenRouting(pack.slot_spans, pack.slot_ends, noise, threshold, scale)
