"""AdamW for several slots at once: one row of parameters per slot, a handful of kernels for all of them.

Slots share nothing but the kernels: each has its own learning rate, weight decay, clipping norm and step
count. A slot whose gradient is not finite is left exactly as it was.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

BETA1: Final = 0.9
BETA2: Final = 0.999
EPS: Final = 1e-8

FULL: Final = "adamw"
EIGHT_BIT: Final = "adamw_8bit"

BLOCK: Final = 256
"""Parameters that share one scale in 8-bit moments; rows are whole blocks."""


@dataclass(frozen=True)
class Knobs:
    """What this step uses, per slot: float32 tensors of shape (slots,)."""

    lr: Tensor
    weight_decay: Tensor
    max_grad_norm: Tensor
    """Infinity where a slot does not clip."""
    active: Tensor
    """1 where the slot takes this step, 0 where it stays as it is."""


@dataclass(frozen=True)
class Outcome:
    """What a step did, per slot: tensors of shape (slots,) on the device."""

    grad_norm: Tensor
    """Norm before clipping."""
    applied: Tensor
    """Boolean: the slot was updated. False for an active slot means a gradient that is not finite."""


@dataclass(frozen=True)
class OptimizerState:
    """One slot's optimizer, independent of how it is stored."""

    updates: float
    """Updates applied so far."""
    first: Tensor
    """First moment, float32 of shape (parameters,)."""
    second: Tensor


class Moments:
    """First and second moments of every slot, float32 of shape (slots, parameters)."""

    def __init__(self, slots: int, parameters: int, device: torch.device) -> None:
        self._first = torch.zeros(slots, parameters, device=device)
        self._second = torch.zeros(slots, parameters, device=device)

    def load(self) -> tuple[Tensor, Tensor]:
        """The moments, to be changed in place and stored."""
        return self._first, self._second

    def store(self, first: Tensor, second: Tensor) -> None:
        """Keep what `load` gave; it is already in place."""

    def set(self, slot: int, first: Tensor | float, second: Tensor | float) -> None:
        """Replace one slot's moments."""
        self._first[slot] = first
        self._second[slot] = second


class EightBitMoments:
    """The same in one byte per value, one scale per block: dynamic quantisation (arXiv 2110.02861, 2.1)."""

    def __init__(self, slots: int, parameters: int, device: torch.device) -> None:
        self._codes = [dynamic_code(signed=signed).to(device) for signed in (True, False)]
        self._bytes = [torch.zeros(slots, parameters, dtype=torch.uint8, device=device) for _ in self._codes]
        # A block whose scale is 0 is all zeros, whatever its bytes.
        self._scales = [torch.zeros(slots, parameters // BLOCK, 1, device=device) for _ in self._codes]

    def load(self) -> tuple[Tensor, Tensor]:
        """The moments as new float32 tensors."""
        first, second = (
            (code[values.int()].view(len(values), -1, BLOCK) * scales).flatten(1)
            for values, scales, code in zip(self._bytes, self._scales, self._codes, strict=True)
        )
        return first, second

    def store(self, first: Tensor, second: Tensor) -> None:
        """Keep what `load` gave, changed; rows that were left alone keep their bytes."""
        for index, moment in enumerate((first, second)):
            code = self._codes[index]
            blocks = moment.view(len(moment), -1, BLOCK)
            scales = blocks.abs().amax(dim=2, keepdim=True)
            nearest = torch.bucketize(blocks / scales.clamp(min=1e-38), (code[1:] + code[:-1]) / 2)
            self._bytes[index].copy_(nearest.flatten(1))
            self._scales[index].copy_(scales)

    def set(self, slot: int, first: Tensor | float, second: Tensor | float) -> None:
        """Replace one slot's moments."""
        everyone = self.load()
        for moment, value in zip(everyone, (first, second), strict=True):
            moment[slot] = value
        self.store(*everyone)


def dynamic_code(*, signed: bool) -> Tensor:
    """The 256 values in [-1, 1] or [0, 1] that a byte stands for, rising: seven decades, upper ones finer.

    Both ends are values, so that a block's largest keeps its size and quantising twice is quantising once.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade if signed else decade + 1) + 1, dtype=torch.float64)
        middles = ((edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - 6)).tolist()
        values += middles + [-middle for middle in middles if signed]
    code = torch.tensor(sorted(values), dtype=torch.float32)
    code[0] = -1.0 if signed else 0.0
    return code


class SlotAdamW:
    """AdamW (arXiv 1711.05101, as torch.optim.AdamW) over `slots` rows of `parameters` each."""

    def __init__(self, slots: int, parameters: int, device: torch.device) -> None:
        self._size = (slots, parameters, device)
        self._kinds: list[str | None] = [None] * slots
        self._moments: dict[str, Moments | EightBitMoments] = {}
        self._members: dict[str, Tensor] = {}
        self._updates = torch.zeros(slots, dtype=torch.float64, device=device)
        """Updates applied so far; a step that was skipped does not count."""

    def start(self, slot: int, kind: str, state: OptimizerState | None = None) -> None:
        """Make `slot` an optimizer of `kind`, fresh or going on from `state`; others are not touched."""
        self._kinds[slot] = kind
        if kind not in self._moments:
            self._moments[kind] = (Moments if kind == FULL else EightBitMoments)(*self._size)
        self._moments[kind].set(slot, state.first if state else 0.0, state.second if state else 0.0)
        self._updates[slot] = state.updates if state else 0.0
        self._moments = {name: moments for name, moments in self._moments.items() if name in self._kinds}
        self._members = {
            name: torch.tensor([k == name for k in self._kinds], device=self._updates.device)
            for name in self._moments
        }

    def state(self, slot: int) -> OptimizerState:
        """Everything that `slot` needs to go on, copied. Raises KeyError when it was never started."""
        first, second = self._moments[str(self._kinds[slot])].load()
        return OptimizerState(self._updates[slot].item(), first[slot].clone(), second[slot].clone())

    @torch.no_grad()
    def update(self, weights: Tensor, grads: Tensor, knobs: Knobs) -> Outcome:
        """Update `weights` in place; both are float32 of shape (slots, parameters)."""
        norm = torch.linalg.vector_norm(grads, dim=1)
        applied = torch.isfinite(norm) & (knobs.active > 0)
        clip = (knobs.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)  # 1e-6: as torch's clip_grad_norm_
        # Zero where a slot stays as it is: its gradient may hold NaN, and NaN * 0 is NaN.
        grads = torch.where(applied[:, None], grads * clip[:, None], 0.0)
        self._updates += applied
        for kind, moments in self._moments.items():
            first, second = moments.load()
            self._step(weights, grads, first, second, knobs, applied & self._members[kind])
            moments.store(first, second)
        return Outcome(norm, applied)

    def _step(
        self, weights: Tensor, grads: Tensor, first: Tensor, second: Tensor, knobs: Knobs, applied: Tensor
    ) -> None:
        """AdamW where `applied`; elsewhere every factor is the one that changes nothing."""
        on = applied.to(torch.float32)
        lr = knobs.lr * on
        count = self._updates.clamp(min=1)  # a slot that never stepped: no 0 / 0
        correction1 = (1 - BETA1**count).float()
        correction2 = (1 - BETA2**count).sqrt().float()
        first.lerp_(grads, ((1 - BETA1) * on)[:, None])
        second.lerp_(grads.square(), ((1 - BETA2) * on)[:, None])
        weights.mul_((1 - lr * knobs.weight_decay)[:, None])
        step = second.sqrt().div_(correction2[:, None]).add_(EPS)
        torch.div(first, step, out=step)
        weights.sub_(step.mul_((lr / correction1)[:, None]))
