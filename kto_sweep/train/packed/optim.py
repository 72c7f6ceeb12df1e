"""AdamW for several slots at once, one row of parameters each, in a few kernels for all; and its schedules.

Slots share only the kernels: each has its own learning rate, weight decay, clipping norm and step count. A
slot whose gradient is not finite does not change at all.
"""

import math
from collections.abc import Callable
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
"""Parameters that share one scale in 8-bit moments; a row is a whole number of blocks."""


@dataclass(frozen=True)
class StepHyperparameters:
    """One step's hyper-parameters per slot: float32 tensors of shape (slots,)."""

    lr: Tensor
    weight_decay: Tensor
    max_grad_norm: Tensor
    """Infinity where a slot does not clip."""
    active: Tensor
    """1 where the slot takes this step, 0 elsewhere."""


@dataclass(frozen=True)
class UpdateResult:
    """What a step did, per slot: tensors of shape (slots,) on the device."""

    grad_norm: Tensor
    """Norm before clipping."""
    applied: Tensor
    """Boolean: the slot was updated. False for an active slot whose gradient is not finite."""


@dataclass(frozen=True)
class OptimizerState:
    """One slot's optimizer state, in float32 however it is stored."""

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
        """The moments, (slots, parameters) each, to change in place and store."""
        return self._first, self._second

    def store(self, first: Tensor, second: Tensor) -> None:
        """Nothing to do: `load` returned the stored tensors themselves."""

    def set(self, slot: int, first: Tensor | float, second: Tensor | float) -> None:
        """Replace one slot's moments, (parameters,) or one value for all."""
        self._first[slot] = first
        self._second[slot] = second


class EightBitMoments:
    """The moments as a byte per value and a scale per block: dynamic quantisation (arXiv 2110.02861)."""

    def __init__(self, slots: int, parameters: int, device: torch.device) -> None:
        self._codes = [dynamic_code(signed=signed).to(device) for signed in (True, False)]
        self._bytes = [torch.zeros(slots, parameters, dtype=torch.uint8, device=device) for _ in self._codes]
        # (slots, blocks, 1). A block with scale 0 is all zeros, whatever its bytes.
        self._scales = [torch.zeros(slots, parameters // BLOCK, 1, device=device) for _ in self._codes]

    def load(self) -> tuple[Tensor, Tensor]:
        """The moments as new float32 tensors, (slots, parameters) each."""
        first, second = (
            (code[values.int()].view(len(values), -1, BLOCK) * scales).flatten(1)
            for values, scales, code in zip(self._bytes, self._scales, self._codes, strict=True)
        )
        return first, second

    def store(self, first: Tensor, second: Tensor) -> None:
        """Quantise the changed moments; rows that did not change keep their bytes."""
        for index, moment in enumerate((first, second)):
            code = self._codes[index]
            blocks = moment.view(len(moment), -1, BLOCK)  # (slots, blocks, BLOCK)
            scales = blocks.abs().amax(dim=2, keepdim=True)
            # The nearest code is found by the midpoints. Without the clamp, an all-zero block gives NaN.
            nearest = torch.bucketize(blocks / scales.clamp(min=1e-38), (code[1:] + code[:-1]) / 2)
            self._bytes[index].copy_(nearest.flatten(1))
            self._scales[index].copy_(scales)

    def set(self, slot: int, first: Tensor | float, second: Tensor | float) -> None:
        """Replace one slot's moments, (parameters,) or one value for all."""
        # The other slots pass through float32 unchanged: quantising a quantised value gives the same byte.
        all_slots = self.load()
        for moment, value in zip(all_slots, (first, second), strict=True):
            moment[slot] = value
        self.store(*all_slots)


def dynamic_code(*, signed: bool) -> Tensor:
    """The 256 values in [-1, 1] or [0, 1] that a byte encodes, rising: (256,). Seven decades, upper ones
    finer.

    Both ends are codes, so that a block's largest value is exact and quantising twice equals quantising once.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade if signed else decade + 1) + 1, dtype=torch.float64)
        middles = ((edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - 6)).tolist()
        values += middles + [-middle for middle in middles if signed]
    code = torch.tensor(sorted(values), dtype=torch.float32)
    code[0] = -1.0 if signed else 0.0  # the signed midpoints leave -1 out
    return code


class SlotAdamW:
    """AdamW (arXiv 1711.05101, as torch.optim.AdamW) over `slots` rows of `parameters` each."""

    def __init__(self, slots: int, parameters: int, device: torch.device) -> None:
        self._size = (slots, parameters, device)
        self._kinds: list[str | None] = [None] * slots
        # Moments are allocated per kind and only for the kinds in use: 8-bit slots should not cost float32.
        self._moments: dict[str, Moments | EightBitMoments] = {}
        self._members: dict[str, Tensor] = {}
        self._updates = torch.zeros(slots, dtype=torch.float64, device=device)
        """Updates applied so far, without skipped steps; float64, since beta^count needs the digits."""

    def start(self, slot: int, kind: str, state: OptimizerState | None = None) -> None:
        """Give `slot` an optimizer of `kind`, new or with `state`; other slots do not change."""
        self._kinds[slot] = kind
        if kind not in self._moments:
            self._moments[kind] = (Moments if kind == FULL else EightBitMoments)(*self._size)
        self._moments[kind].set(slot, state.first if state else 0.0, state.second if state else 0.0)
        self._updates[slot] = state.updates if state else 0.0
        # A kind that no slot uses any longer frees its memory.
        self._moments = {name: moments for name, moments in self._moments.items() if name in self._kinds}
        self._members = {
            name: torch.tensor([k == name for k in self._kinds], device=self._updates.device)
            for name in self._moments
        }

    def state(self, slot: int) -> OptimizerState:
        """Everything that `slot` needs to continue, copied. Raises KeyError when it was never started."""
        first, second = self._moments[str(self._kinds[slot])].load()
        return OptimizerState(self._updates[slot].item(), first[slot].clone(), second[slot].clone())

    @torch.no_grad()
    def update(self, weights: Tensor, grads: Tensor, hyper: StepHyperparameters) -> UpdateResult:
        """Update `weights` in place, without waiting; both are float32 (slots, parameters)."""
        norm = torch.linalg.vector_norm(grads, dim=1)
        applied = torch.isfinite(norm) & (hyper.active > 0)
        clip = (hyper.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)  # 1e-6: as torch's clip_grad_norm_
        # where, not a product with `applied`: the gradient may hold NaN, and NaN * 0 is NaN.
        grads = torch.where(applied[:, None], grads * clip[:, None], 0.0)
        self._updates += applied
        for kind, moments in self._moments.items():
            first, second = moments.load()
            # All rows, with factors that leave the other kind's rows as they are: no gather, no scatter.
            self._step(weights, grads, first, second, hyper, applied & self._members[kind])
            moments.store(first, second)
        return UpdateResult(norm, applied)

    def _step(
        self,
        weights: Tensor,
        grads: Tensor,
        first: Tensor,
        second: Tensor,
        hyper: StepHyperparameters,
        applied: Tensor,
    ) -> None:
        """AdamW where `applied` (slots,); elsewhere every factor is neutral."""
        on = applied.to(torch.float32)
        lr = hyper.lr * on
        count = self._updates.clamp(min=1)  # 0 updates would divide 0 by 0
        # In float64 until here: 1 - 0.999^1 would lose digits in float32.
        correction1 = (1 - BETA1**count).float()
        correction2 = (1 - BETA2**count).sqrt().float()
        first.lerp_(grads, ((1 - BETA1) * on)[:, None])
        second.lerp_(grads.square(), ((1 - BETA2) * on)[:, None])
        weights.mul_((1 - lr * hyper.weight_decay)[:, None])
        # torch.optim.AdamW's order of operations: eps is added after the bias correction.
        step = second.sqrt().div_(correction2[:, None]).add_(EPS)
        torch.div(first, step, out=step)  # in place: this tensor is as large as all adapters
        weights.sub_(step.mul_((lr / correction1)[:, None]))


SCHEDULES = ("cosine", "linear", "constant")


def warmup_steps(total_steps: int, warmup_ratio: float) -> int:
    """Steps of linear warm-up, rounded up as transformers' TrainingArguments does."""
    return math.ceil(total_steps * warmup_ratio)


def lr_factor(kind: str, step: int, warmup: int, total_steps: int) -> float:
    """Factor of the learning rate at optimizer step `step`, counted from 0.

    The values of transformers' get_{cosine,linear,constant}_schedule_with_warmup: with warm-up, the very
    first step has learning rate 0.

    >>> [round(lr_factor("cosine", step, 2, 6), 3) for step in range(7)]
    [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return step / max(1, warmup)
    decay: dict[str, Callable[[float], float]] = {
        "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": lambda progress: 1 - progress,
        "constant": lambda progress: 1.0,
    }
    progress = (step - warmup) / max(1, total_steps - warmup)
    return max(0.0, decay[kind](progress))
