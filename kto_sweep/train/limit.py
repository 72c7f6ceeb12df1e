"""How much goes into one forward, and less of it when memory runs out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from kto_sweep.train.pack import Item

T = TypeVar("T")


@dataclass(frozen=True)
class Limit:
    """How much one forward may hold; a single example is never split."""

    tokens: int | None = None
    """Matched and mismatched together; None: any number."""
    examples: int | None = None

    def split(self, items: Sequence[Item]) -> list[list[Item]]:
        """The items in their order, each part filled before the next begins."""
        parts: list[list[Item]] = []
        tokens = 0
        for item in items:
            size = item.row.tokens()
            if not parts or self._full(tokens + size, len(parts[-1]) + 1):
                parts.append([])
                tokens = 0
            parts[-1].append(item)
            tokens += size
        return parts

    def _full(self, tokens: int, examples: int) -> bool:
        return (self.tokens is not None and tokens > self.tokens) or (
            self.examples is not None and examples > self.examples
        )


def until_it_fits(work: Callable[[Limit], T], limit: Limit, items: Sequence[Item]) -> tuple[T, Limit]:
    """What `work` gives under `limit`, or under the first half, quarter, ... of it that fits, and that limit.

    `work` begins anew each time. Raises torch.OutOfMemoryError when single examples do not fit.
    """
    while True:
        try:
            return work(limit), limit
        except torch.OutOfMemoryError:
            parts = limit.split(items)
            if all(len(part) == 1 for part in parts):
                raise
        # Out here the error is gone, and with it the tensors that its traceback held.
        largest = max(sum(item.row.tokens() for item in part) for part in parts)
        limit = replace(limit, tokens=largest // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
