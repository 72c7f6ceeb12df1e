"""Log-probs of rows without training: the reference's, or one slot's for evaluation."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from kto_sweep.train.decoder import Decoder
from kto_sweep.train.limit import Limit
from kto_sweep.train.lora import AdapterStack
from kto_sweep.train.pack import Item, Pack, PairedRow, pack, pack_onto


@torch.no_grad()
def score(
    decoder: Decoder,
    rows: Sequence[PairedRow],
    limit: Limit,
    adapters: AdapterStack | None = None,
    slot: int = 0,
) -> Tensor:
    """(rows, 2) log-probs of matched and mismatched completions, nats, float64 on the device.

    With `adapters`, those of `slot` take part, without dropout; else it is the base model that answers.
    On a CPU a row's log-probs do not depend on the rows it comes with, as far as torch's products do not.
    """
    # Where a shared beginning ends depends on the other rows, and with it how sums over keys are rounded.
    share = decoder.device.type != "cpu"

    def routed(forward: Pack) -> AbstractContextManager[None]:
        return adapters.routed(forward, training=False) if adapters else nullcontext()

    slots = adapters.slots if adapters else 1
    items = [Item(row, slot, example) for example, row in enumerate(rows)]
    scores = torch.zeros(len(rows), 2, dtype=torch.float64, device=decoder.device)
    for part in limit.split(items):
        matched = pack(part, slots, decoder.device, keep=True, share=share)
        with routed(matched):
            scores[:, 0] += decoder.log_probs(matched, len(rows))
        mismatched = pack_onto(matched, part, part, slots, decoder.device)
        with routed(mismatched):
            scores[:, 1] += decoder.log_probs(mismatched, len(rows))
        del matched, mismatched  # with their keys and values, before the next part has its own
    return scores
