"""One optimizer step of every slot at once: from batches to gradients and sums for the metrics.

    pack -> matched log-probs -> mismatched log-probs -> z0 -> loss -> backward

z0 is the KL estimate of a trial's whole batch (arXiv 2402.01306, equation 8), and its backward needs it.

    whole batches in a micro-batch    matched pass, then mismatched pass on the keys and values of its
                                      prompts, then backward
    a batch in several                mismatched pass over the batch first, then matched pass and backward of
                                      each micro-batch: its prompts are fed twice

Both ways, and every split, give the same numbers.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kto_sweep.data.keys import hash64
from kto_sweep.train.loss import losses, needs_reference_point, reference_point
from kto_sweep.train.packed.decoder import Decoder
from kto_sweep.train.packed.lora import AdapterStack
from kto_sweep.train.packed.microbatch import MicrobatchLimit
from kto_sweep.train.packed.pack import Item, Pack, PairedRow, pack, pack_onto, to_device


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
    kl_raw: Tensor
    """Mean log-ratio of the mismatched pairs, nats: z0 before its clamp at 0."""
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
    decoder: Decoder, adapters: AdapterStack, batches: Sequence[SlotBatch], limit: MicrobatchLimit
) -> StepSums:
    """Add the gradient of each batch's mean loss to `adapters.grads`, (slots, parameters).

    The host never waits for the device. Raises torch.OutOfMemoryError.
    """
    batches = sorted(
        batches, key=lambda batch: batch.slot
    )  # grouped kernels want each slot's tokens together
    table = _ExampleTable(batches, adapters.slots, decoder.device)
    items = step_items(batches)
    # (examples,), float64: filled micro-batch by micro-batch.
    mismatched, log_probs, all_losses = (torch.zeros_like(table.matched) for _ in range(3))
    for micro_batches in _by_trial(limit.split(items)):
        whole = len(micro_batches) == 1
        if not whole:
            own_items = [item for micro_batch in micro_batches for item in micro_batch]
            mismatched += _mismatched_in_full(decoder, adapters, own_items, table, limit)
        for micro_batch in micro_batches:
            # `keep`: only a mismatched pass that follows at once can reuse this forward's keys and values.
            matched = pack(micro_batch, adapters.slots, decoder.device, keep=whole and table.compares)
            # The backward is inside, too: it may run layers again, and their adapters need the same routing.
            with adapters.routed(matched, training=True):
                # (examples,), 0 for those of other micro-batches
                log_prob = decoder.log_probs(matched, len(items))
                if whole:
                    mismatched += _mismatched_onto(decoder, adapters, matched, micro_batch, table)
                # Of slots whose mismatched pass is still to come, z0 is wrong, and not used.
                z0 = reference_point(table.kl_raw(mismatched))[table.slot]  # (slots,) -> (examples,)
                loss = losses(log_prob - table.matched, table.desirable, z0, table.beta, table.weight)
                own = slice(micro_batch[0].example, micro_batch[-1].example + 1)
                # `share` is 1 / the slot's batch size: the sum over all micro-batches is each slot's mean
                # loss. Slots share no parameters, so a backward of the sum gives every slot its own gradient.
                (loss[own] * table.share[own]).sum().backward()
            log_probs[own], all_losses[own] = log_prob.detach()[own], loss.detach()[own]
    return table.sums(log_probs, all_losses, table.kl_raw(mismatched))


def _by_trial(micro_batches: list[list[Item]]) -> list[list[list[Item]]]:
    """The micro-batches that one trial's batch was split into, together; each other one alone."""
    groups: list[list[list[Item]]] = []
    for micro_batch in micro_batches:
        if groups and groups[-1][-1][-1].slot == micro_batch[0].slot:
            groups[-1].append(micro_batch)
        else:
            groups.append([micro_batch])
    return groups


def step_items(batches: Sequence[SlotBatch]) -> list[Item]:
    """The batches' examples, numbered in order; each with its own dropout seed."""
    items: list[Item] = []
    for batch in batches:
        for place, row in enumerate(batch.rows):
            # From the trial's seed, step and place in the batch alone: neighbours and splits change nothing.
            noise = int(hash64(np.int64(batch.noise) ^ hash64(np.int64(place)))[0]) if batch.noise else 0
            items.append(Item(row, batch.slot, len(items), noise))
    return items


@torch.no_grad()
def _mismatched_onto(
    decoder: Decoder, adapters: AdapterStack, matched: Pack, items: list[Item], table: "_ExampleTable"
) -> Tensor:
    """Log-probs of the mismatched completions, (examples,), on the prompts that `matched` kept."""
    compared = [item for item in items if item.slot in table.compared_slots]
    if not compared:
        return torch.zeros_like(table.matched)
    forward = pack_onto(matched, items, compared, adapters.slots, decoder.device)
    with adapters.routed(forward, training=True):
        log_probs = decoder.log_probs(forward, len(table.matched))
    # Frees the keys and values, and layers that run again in the backward do not store theirs.
    matched.attention.keep = None
    return log_probs


@torch.no_grad()
def _mismatched_in_full(
    decoder: Decoder,
    adapters: AdapterStack,
    items: list[Item],
    table: "_ExampleTable",
    limit: MicrobatchLimit,
) -> Tensor:
    """Log-probs of the mismatched completions, (examples,), with their prompts fed again."""
    log_probs = torch.zeros_like(table.matched)
    for micro_batch in limit.split([item for item in items if item.slot in table.compared_slots]):
        forward = pack(micro_batch, adapters.slots, decoder.device, mismatched=True)
        with adapters.routed(forward, training=True):
            log_probs += decoder.log_probs(forward, len(table.matched))
    return log_probs


class _ExampleTable:
    """What is known about every example before the step: float64 tensors of shape (examples,)."""

    def __init__(self, batches: Sequence[SlotBatch], slots: int, device: torch.device) -> None:
        self.slots = slots
        self.compared_slots = {batch.slot for batch in batches if needs_reference_point(batch.loss_type)}
        """Slots whose loss has a z0."""
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
        # Float64: a reward is a small difference of two sums over hundreds of tokens.
        table = to_device(
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

    def kl_raw(self, mismatched: Tensor) -> Tensor:
        """Each slot's mean log-ratio of mismatched pairs, (slots,), from their log-probs, (examples,).

        0 for slots whose loss has no z0.
        """
        return self._by_slot((mismatched - self._mismatched) * self._compared * self.share)

    def sums(self, log_probs: Tensor, losses: Tensor, kl_raw: Tensor) -> StepSums:
        """The step's sums, from matched log-probs and losses, (examples,), and kl_raw, (slots,)."""
        rewards = self.beta * (log_probs - self.matched)
        chosen, rejected = self.desirable.double(), (~self.desirable).double()
        return StepSums(
            loss=self._by_slot(losses * self.share),
            kl_raw=kl_raw,
            desirable=self._by_slot(chosen),
            undesirable=self._by_slot(rejected),
            chosen_rewards=self._by_slot(rewards * chosen),
            rejected_rewards=self._by_slot(rewards * rejected),
            chosen_log_probs=self._by_slot(log_probs * chosen),
            rejected_log_probs=self._by_slot(log_probs * rejected),
        )

    def _by_slot(self, values: Tensor) -> Tensor:
        """Sums over each slot's examples: (examples,) -> (slots,)."""
        return torch.zeros(self.slots, dtype=torch.float64, device=values.device).index_add(
            0, self.slot, values
        )


@torch.no_grad()
def score(
    decoder: Decoder,
    rows: Sequence[PairedRow],
    limit: MicrobatchLimit,
    adapters: AdapterStack | None = None,
    slot: int = 0,
) -> Tensor:
    """(rows, 2) log-probs of matched and mismatched completions without training, float64 on the device.

    By the adapters of `slot`, without dropout, or without `adapters` by the base model. In nats. On a CPU a
    row's log-probs do not depend on the other rows, except through torch's matrix products.
    """
    # Where a shared beginning ends depends on the other rows, and it changes how sums over keys are rounded.
    share = decoder.device.type != "cpu"

    def routed(forward: Pack) -> AbstractContextManager[None]:
        return adapters.routed(forward, training=False) if adapters else nullcontext()

    slots = adapters.slots if adapters else 1
    items = [Item(row, slot, example) for example, row in enumerate(rows)]
    scores = torch.zeros(len(rows), 2, dtype=torch.float64, device=decoder.device)
    for micro_batch in limit.split(items):
        matched = pack(micro_batch, slots, decoder.device, keep=True, share=share)
        with routed(matched):
            scores[:, 0] += decoder.log_probs(matched, len(rows))
        mismatched = pack_onto(matched, micro_batch, micro_batch, slots, decoder.device)
        with routed(mismatched):
            scores[:, 1] += decoder.log_probs(mismatched, len(rows))
        del matched, mismatched  # free their keys and values before the next micro-batch makes its own
    return scores
