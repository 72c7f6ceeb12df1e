"""How much goes into one forward, and less of it when memory runs out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

import torch

from kto_sweep.train.packed.pack import Item

T = TypeVar("T")


@dataclass(frozen=True)
class MicrobatchLimit:
    """The size of one forward; one example is never split."""

    tokens: int | None = None
    """Matched and mismatched together; None: unlimited."""
    examples: int | None = None

    def split(self, items: Sequence[Item]) -> list[list[Item]]:
        """Micro-batches of `items`, in their order: the batches of as many trials as fit.

        A trial's batch is split only if it does not fit alone, and shares no micro-batch with others then: z0
        belongs to a trial's whole batch, and a split one takes a second pass over its prompts (see step.py).
        """
        batches: list[list[Item]] = []
        tokens, is_open = 0, False
        for _, group in groupby(items, key=lambda item: item.slot):
            own = list(group)
            size = sum(item.row.tokens() for item in own)
            if self._is_full(size, len(own)):
                batches += self._fill(own)
                is_open = False
                continue
            if is_open and not self._is_full(tokens + size, len(batches[-1]) + len(own)):
                batches[-1] += own
                tokens += size
            else:
                batches.append(own)
                tokens, is_open = size, True
        return batches

    def _fill(self, items: Sequence[Item]) -> list[list[Item]]:
        """One trial's items, each micro-batch filled before the next begins."""
        batches: list[list[Item]] = []
        tokens = 0
        for item in items:
            size = item.row.tokens()
            if not batches or self._is_full(tokens + size, len(batches[-1]) + 1):
                batches.append([])
                tokens = 0
            batches[-1].append(item)
            tokens += size
        return batches

    def _is_full(self, tokens: int, examples: int) -> bool:
        return (self.tokens is not None and tokens > self.tokens) or (
            self.examples is not None and examples > self.examples
        )


def retry_on_oom(
    work: Callable[[MicrobatchLimit], T], limit: MicrobatchLimit, items: Sequence[Item]
) -> tuple[T, MicrobatchLimit]:
    """The result of `work` under `limit`, or under the first half, quarter, ... that fits, and that limit.

    `work` starts over each time. Raises torch.OutOfMemoryError when one example does not fit.
    """
    while True:
        try:
            return work(limit), limit
        except torch.OutOfMemoryError:
            batches = limit.split(items)
            if all(len(batch) == 1 for batch in batches):
                raise
        # Outside the except block: the error is gone, and with it the tensors that its traceback held.
        largest = max(sum(item.row.tokens() for item in batch) for batch in batches)
        # From the largest batch: halving a limit that is above all batches has no effect.
        limit = replace(limit, tokens=largest // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the next attempt has other sizes: cached blocks would not fit them
