"""What several prompts begin with: tokens that one forward computes once and not for each of them.

A causal model gives equal beginnings equal hidden states. Rows of one trial often share them: the same system
prompt, the same list of tools, the same prompt with several completions. The rows of a forward become a
tree of pieces, each with the keys of those that it hangs on before its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

SHORTEST = 8
"""Tokens of a shared beginning: a shorter one is not worth a sequence of its own."""


@dataclass(frozen=True)
class Piece:
    """Tokens `begin` to `end` of prompt number `row`; a whole rest of it, with its completion, if `last`."""

    row: int
    begin: int
    end: int
    last: bool
    after: int | None = None
    """The piece that it hangs on, by its place in the list."""


def whole(prompts: Sequence[NDArray[np.int64]]) -> list[Piece]:
    """A piece for each prompt: nothing is shared."""
    return [Piece(row, 0, len(prompt), last=True) for row, prompt in enumerate(prompts)]


def tree(prompts: Sequence[NDArray[np.int64]]) -> list[Piece]:
    """The prompts as pieces, those that others hang on before them; each prompt's last token is its own.

    >>> a, b, c = (np.array(ids) for ids in ([*range(10), 77], [*range(10), 88, 99], [5]))
    >>> [(piece.row, piece.begin, piece.end, piece.last) for piece in tree([a, b, c])]
    [(2, 0, 1, True), (0, 0, 10, False), (0, 10, 11, True), (1, 10, 12, True)]
    """
    heads = [prompt[:-1] for prompt in prompts]
    # Sorted, rows with the same beginning lie together, and what all of a group share, its ends share.
    order = sorted(range(len(prompts)), key=lambda row: heads[row].tobytes())
    pieces: list[Piece] = []
    groups: list[tuple[list[int], int, int | None]] = [(order, 0, None)]
    while groups:
        group, begin, after = groups.pop()
        common = _common(heads[group[0]], heads[group[-1]])
        if len(group) > 1 and common - begin >= SHORTEST:
            pieces.append(Piece(group[0], begin, common, last=False, after=after))
            begin, after = common, len(pieces) - 1

        def next_token(row: int, at: int = common) -> int | None:
            return int(heads[row][at]) if at < len(heads[row]) else None

        for token, same in groupby(group, key=next_token):
            rows = list(same)
            if token is not None and len(rows) > 1:
                groups.append((rows, begin, after))
            else:
                pieces += [Piece(row, begin, len(prompts[row]), last=True, after=after) for row in rows]
    return pieces


def _common(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    shorter = min(len(one), len(other))
    differs = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(differs[0]) if len(differs) else shorter
