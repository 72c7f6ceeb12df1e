"""The held-out split, the mismatched partners for the KL estimate, and the order of batches.

All three are pure functions of the rows and a seed, so every trial, agent and trainer gets the same result.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from kto_sweep.data.rows import TokenRow
from kto_sweep.errors import DataError


def split_by_prompt(
    rows: Sequence[TokenRow], eval_fraction: float, seed: int
) -> tuple[list[TokenRow], list[TokenRow]]:
    """Training rows and held-out rows, in file order; no prompt is on both sides.

    Prompts are visited in an order that depends only on their tokens and `seed`. A prompt is held out if that
    brings the held-out counts of both labels nearer to `eval_fraction` of all. When 0 < eval_fraction < 1,
    each side has one prompt if there are two, and two (enough for mismatched pairs) if there are four.
    """
    if eval_fraction <= 0:
        return list(rows), []
    groups: dict[int, list[TokenRow]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    order = sorted(groups, key=lambda group: _shuffle_key(groups[group][0], seed))
    held_out = _choose(order, {group: _counts(members) for group, members in groups.items()}, eval_fraction)
    train = [row for row in rows if row.group not in held_out]
    return train, [row for row in rows if row.group in held_out]


def _choose(order: Sequence[int], counts: dict[int, np.ndarray], eval_fraction: float) -> set[int]:
    """The groups to hold out."""
    total = np.sum(list(counts.values()), axis=0)
    # At least one row of each label that has two: without it AUC and margins are undefined.
    target = np.where(total > 1, np.maximum(eval_fraction * total, 1.0), eval_fraction * total)
    min_prompts = min(2, len(order) // 2)  # on each side
    chosen: set[int] = set()
    held_out = np.zeros(2)
    for group in order:
        nearer = np.abs(target - held_out - counts[group]).sum() < np.abs(target - held_out).sum()
        if nearer and len(chosen) < len(order) - min_prompts:
            chosen.add(group)
            held_out = held_out + counts[group]
    for group in sorted(order, key=lambda group: int(counts[group].sum())):  # stable: ties stay in `order`
        if len(chosen) < min_prompts:
            chosen.add(group)
    return chosen


def _counts(rows: Sequence[TokenRow]) -> np.ndarray:
    """(undesirable, desirable) rows."""
    desirable = sum(row.label for row in rows)
    return np.array([len(rows) - desirable, desirable], dtype=float)


def _shuffle_key(row: TokenRow, seed: int) -> bytes:
    """A sort key that depends on the prompt's tokens and the seed, not on the row's position."""
    return hashlib.sha256(np.array([seed, *row.prompt], dtype=np.int64).tobytes()).digest()


def partners(rows: Sequence[TokenRow], seed: int) -> list[int]:
    """For each row, the row whose completion mismatches its prompt; always one with another prompt.

    A permutation when no prompt has more than half of the rows, so that each completion is used once;
    otherwise the rows of the other prompts are used in turn, equally often.

    Raises DataError when all rows have the same prompt.
    """
    rng = np.random.default_rng(seed)
    groups: dict[int, list[int]] = defaultdict(list)
    for at in rng.permutation(len(rows)):
        groups[rows[at].group].append(int(at))
    if len(groups) < 2:
        raise DataError(
            f"all {len(rows)} rows have the same prompt",
            hint="KTO compares answers to different prompts: use rows with at least two prompts",
        )
    largest = max(groups.values(), key=len)
    others = [at for members in groups.values() if members is not largest for at in members]
    partner = [0] * len(rows)
    if len(largest) > len(others):
        for position, at in enumerate(largest):
            partner[at] = others[position % len(others)]
        for position, at in enumerate(others):
            partner[at] = largest[position]
        return partner
    # Groups are contiguous in the ring, so a shift by the largest group's size always leaves the group.
    ring = [*largest, *others]
    for position, at in enumerate(ring):
        partner[at] = ring[(position + len(largest)) % len(ring)]
    return partner


def batches(n: int, batch_size: int, epoch: int, seed: int) -> list[list[int]]:
    """Row numbers of each optimizer step of `epoch` (counted from 0); the last batch may be smaller."""
    order = np.random.default_rng((seed, epoch)).permutation(n).tolist()
    return [order[at : at + batch_size] for at in range(0, n, batch_size)]


def all_batches(n: int, batch_size: int, total: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """The first `total` batches over all epochs, each with its epoch (counted from 0)."""
    done = epoch = 0
    while done < total:
        for batch in batches(n, batch_size, epoch, seed)[: total - done]:
            yield epoch, batch
            done += 1
        epoch += 1


def total_steps(n: int, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a trial on `n` rows; max_steps, if set, replaces epochs.

    >>> total_steps(100, 8, 1.5, None)  # 13 steps an epoch
    20
    """
    return max_steps if max_steps is not None else max(1, math.ceil(epochs * math.ceil(n / batch_size)))
