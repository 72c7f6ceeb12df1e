"""Shared beginnings of prompts: tokens that one forward computes once instead of once per prompt.

A causal model gives equal beginnings equal hidden states. Rows of one trial often share them: the same system
prompt, the same tools, the same prompt with several completions. The prompts of a forward become a tree of
segments; each attends to the segments above it, then to itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

SHORTEST = 8
"""The fewest tokens of a shared beginning: a shorter one is not worth a separate sequence."""


@dataclass(frozen=True)
class PromptSegment:
    """Tokens `begin` to `end` of prompt number `row`; with `last`, its rest, which the completion follows."""

    row: int
    begin: int
    end: int
    last: bool
    after: int | None = None
    """Index of the segment above it."""


def whole(prompts: Sequence[NDArray[np.int64]]) -> list[PromptSegment]:
    """One segment per prompt: nothing is shared."""
    return [PromptSegment(row, 0, len(prompt), last=True) for row, prompt in enumerate(prompts)]


def tree(prompts: Sequence[NDArray[np.int64]]) -> list[PromptSegment]:
    """The prompts as segments, each after the one above it. A prompt's last token is never shared.

    >>> a, b, c = (np.array(ids) for ids in ([*range(10), 77], [*range(10), 88, 99], [5]))
    >>> [(piece.row, piece.begin, piece.end, piece.last) for piece in tree([a, b, c])]
    [(2, 0, 1, True), (0, 0, 10, False), (0, 10, 11, True), (1, 10, 12, True)]
    """
    # The last token predicts the first completion token: its hidden state is needed once per prompt.
    heads = [prompt[:-1] for prompt in prompts]
    # Sorted by bytes, prompts with the same beginning are neighbours, and the beginning that a whole group
    # shares is the one that its first and last prompt share.
    order = sorted(range(len(prompts)), key=lambda row: heads[row].tobytes())
    segments: list[PromptSegment] = []
    groups: list[tuple[list[int], int, int | None]] = [(order, 0, None)]
    while groups:
        group, begin, after = groups.pop()
        common = _common(heads[group[0]], heads[group[-1]])
        if len(group) > 1 and common - begin >= SHORTEST:
            segments.append(PromptSegment(group[0], begin, common, last=False, after=after))
            begin, after = common, len(segments) - 1

        def next_token(row: int, at: int = common) -> int | None:
            return int(heads[row][at]) if at < len(heads[row]) else None

        # Below the shared part the group splits by its next token; each part may share more.
        for token, same in groupby(group, key=next_token):
            rows = list(same)
            if token is not None and len(rows) > 1:
                groups.append((rows, begin, after))
            else:
                segments += [
                    PromptSegment(row, begin, len(prompts[row]), last=True, after=after) for row in rows
                ]
    return segments


def _common(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """Number of equal tokens at the start."""
    shorter = min(len(one), len(other))
    differs = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(differs[0]) if len(differs) else shorter
