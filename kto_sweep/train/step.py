"""One step of every slot at once: from batches to gradients and metrics.

    pack -> matched log-probs -> mismatched log-probs -> z0 -> loss -> backward

In one micro-batch the mismatched pass comes second and reuses the keys and values of the prompts. In several
it comes first, over the whole batch, because z0 belongs to the whole batch and each backward needs it. Both
ways and every split give the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kto_sweep.train.decoder import Decoder
from kto_sweep.train.limit import Limit
from kto_sweep.train.lora import AdapterStack
from kto_sweep.train.loss import losses, needs_reference_point, reference_point
from kto_sweep.train.pack import Item, Pack, PairedRow, mix, pack, pack_onto, ship


@dataclass(frozen=True)
class SlotBatch:
    """What one slot trains on in one optimizer step."""

    slot: int
    rows: Sequence[PairedRow]
    matched: Sequence[float]
    """The base model's log-probs of the rows' completions, nats."""
    mismatched: Sequence[float]
    """Those of their mismatched completions."""
    beta: float
    weights: tuple[float, float]
    """(lambda_D, lambda_U)"""
    loss_type: str
    noise: int = 0
    """Seed of this step's dropout; 0 without."""


@dataclass(frozen=True)
class StepSums:
    """What a step measured, per slot: float64 tensors of shape (slots,) on the device."""

    loss: Tensor
    """Mean over the batch."""
    mismatched: Tensor
    """Mean log-ratio of the mismatched pairs: z0 before its clamp at 0."""
    desirable: Tensor
    """Number of desirable examples."""
    undesirable: Tensor
    chosen_rewards: Tensor
    """Sum of beta * log-ratio over desirable examples."""
    rejected_rewards: Tensor
    chosen_log_probs: Tensor
    """Sum of log-probs over desirable examples."""
    rejected_log_probs: Tensor


def add_gradients(
    decoder: Decoder, adapters: AdapterStack, batches: Sequence[SlotBatch], limit: Limit
) -> StepSums:
    """Add the gradient of each batch's mean loss to `adapters.grads`; the host never waits for the device."""
    batches = sorted(batches, key=lambda batch: batch.slot)
    table = _Table(batches, adapters.slots, decoder.device)
    items = step_items(batches)
    parts = limit.split(items)
    at_once = len(parts) == 1
    drift = None if at_once else table.mean(_mismatched_in_full(decoder, adapters, items, table, limit))
    log_probs, losses_ = torch.zeros_like(table.matched), torch.zeros_like(table.matched)
    for part in parts:
        matched = pack(part, adapters.slots, decoder.device, keep=at_once and table.compares)
        # The backward is in here too: it may run layers again, and their adapters need the same routing.
        with adapters.routed(matched, training=True):
            found = decoder.log_probs(matched, len(items))
            if drift is None:
                drift = table.mean(_mismatched_onto(decoder, adapters, matched, items, table))
            z0 = reference_point(drift)[table.slot]
            each = losses(found - table.matched, table.desirable, z0, table.beta, table.weight)
            own = slice(part[0].example, part[-1].example + 1)
            (each[own] * table.share[own]).sum().backward()
        log_probs[own], losses_[own] = found.detach()[own], each.detach()[own]
    assert drift is not None
    return table.sums(log_probs, losses_, drift)


def step_items(batches: Sequence[SlotBatch]) -> list[Item]:
    """The batches' examples, numbered through; each with its own dropout noise."""
    items: list[Item] = []
    for batch in batches:
        for place, row in enumerate(batch.rows):
            noise = int(mix(np.int64(batch.noise) ^ mix(np.int64(place)))[0]) if batch.noise else 0
            items.append(Item(row, batch.slot, len(items), noise))
    return items


@torch.no_grad()
def _mismatched_onto(
    decoder: Decoder, adapters: AdapterStack, matched: Pack, items: list[Item], table: "_Table"
) -> Tensor:
    """Log-probs of the mismatched completions, (examples,), on the prompts that `matched` kept."""
    if not table.compares:
        return torch.zeros_like(table.matched)
    compared = [item for item in items if item.slot in table.compared_slots]
    forward = pack_onto(matched, items, compared, adapters.slots, decoder.device)
    with adapters.routed(forward, training=True):
        log_probs = decoder.log_probs(forward, len(items))
    matched.attention.keep = None  # used: layers that run again in the backward need not store anything
    return log_probs


@torch.no_grad()
def _mismatched_in_full(
    decoder: Decoder, adapters: AdapterStack, items: list[Item], table: "_Table", limit: Limit
) -> Tensor:
    """The same with the prompts fed again, part by part."""
    log_probs = torch.zeros_like(table.matched)
    for part in limit.split([item for item in items if item.slot in table.compared_slots]):
        forward = pack(part, adapters.slots, decoder.device, mismatched=True)
        with adapters.routed(forward, training=True):
            log_probs += decoder.log_probs(forward, len(items))
    return log_probs


class _Table:
    """What is known of every example before the step: float64 tensors of shape (examples,)."""

    def __init__(self, batches: Sequence[SlotBatch], slots: int, device: torch.device) -> None:
        self.slots = slots
        self.compared_slots = {batch.slot for batch in batches if needs_reference_point(batch.loss_type)}
        self.compares = bool(self.compared_slots)
        rows = [(batch, row) for batch in batches for row in batch.rows]
        columns = {
            "slot": [batch.slot for batch, _ in rows],
            "desirable": [row.desirable for _, row in rows],
            "compared": [batch.slot in self.compared_slots for batch, _ in rows],
            "share": [1 / len(batch.rows) for batch, _ in rows],
            "beta": [batch.beta for batch, _ in rows],
            "weight": [batch.weights[0 if row.desirable else 1] for batch, row in rows],
            "matched": [value for batch in batches for value in batch.matched],
            "mismatched": [value for batch in batches for value in batch.mismatched],
        }
        table = ship(
            {name: np.asarray(values, float) for name, values in columns.items()}, device, torch.float64
        )
        self.slot = table["slot"].long()
        self.desirable = table["desirable"].bool()
        self.share = table["share"]
        """1 / batch size of the example's slot."""
        self.beta = table["beta"]
        self.weight = table["weight"]
        self.matched = table["matched"]
        self._mismatched = table["mismatched"]
        self._compared = table["compared"]

    def mean(self, mismatched: Tensor) -> Tensor:
        """Each slot's mean log-ratio of mismatched pairs, (slots,), from their log-probs; 0 without z0."""
        return self._by_slot((mismatched - self._mismatched) * self._compared * self.share)

    def sums(self, log_probs: Tensor, losses: Tensor, drift: Tensor) -> StepSums:
        """The step's measurements, from the matched log-probs and losses."""
        rewards = self.beta * (log_probs - self.matched)
        chosen, rejected = self.desirable.double(), (~self.desirable).double()
        return StepSums(
            loss=self._by_slot(losses * self.share),
            mismatched=drift,
            desirable=self._by_slot(chosen),
            undesirable=self._by_slot(rejected),
            chosen_rewards=self._by_slot(rewards * chosen),
            rejected_rewards=self._by_slot(rewards * rejected),
            chosen_log_probs=self._by_slot(log_probs * chosen),
            rejected_log_probs=self._by_slot(log_probs * rejected),
        )

    def _by_slot(self, values: Tensor) -> Tensor:
        return torch.zeros(self.slots, dtype=torch.float64, device=values.device).index_add(
            0, self.slot, values
        )
