"""The held-out split, the mismatched partners for the KL estimate, and the order of batches.

All three are pure functions of the rows and a seed, so every trial, agent and trainer gets the same result.
"""

import math
from collections.abc import Iterator

import numpy as np

from kto_sweep.data.keys import hash64
from kto_sweep.data.table import Numbers, RowTable
from kto_sweep.errors import DataError


def split_by_prompt(table: RowTable, eval_fraction: float, seed: int) -> tuple[RowTable, RowTable]:
    """Training rows and held-out rows, in file order; no prompt is on both sides.

    Prompts are visited in an order that depends only on their text and `seed`: neither the model nor
    max_length changes which rows are held out. A prompt is held out if that brings the held-out counts of
    both labels nearer to `eval_fraction` of all. When 0 < eval_fraction < 1, each side has one prompt if
    there are two, and two (enough for mismatched pairs) if there are four.
    """
    if eval_fraction <= 0 or not len(table):
        return table, table.take([])
    keys, prompt_of = np.unique(table.prompt_keys, return_inverse=True)
    counts = np.stack(
        [np.bincount(prompt_of[side], minlength=len(keys)) for side in (~table.labels, table.labels)]
    )
    order = np.argsort(hash64(keys + (seed << 40)).view(np.uint64), kind="stable")
    held_out = _choose(order, counts, eval_fraction)[prompt_of]
    return table.take(~held_out), table.take(held_out)


def _choose(order: Numbers, counts: Numbers, eval_fraction: float) -> np.ndarray:
    """Whether to hold out each prompt: (prompts,); `counts`: (2, prompts) undesirable and desirable rows."""
    total = counts.sum(axis=1)
    # At least one row of each label that has two: without it AUC and margins are undefined.
    target = np.where(total > 1, np.maximum(eval_fraction * total, 1.0), eval_fraction * total)
    min_prompts = min(2, len(order) // 2)  # on each side
    chosen = np.zeros(len(order), dtype=bool)
    number = 0
    # Plain floats: this loop runs once for each prompt.
    missing_bad, missing_good = target.tolist()
    for at, bad, good in zip(order.tolist(), *counts[:, order].tolist(), strict=True):
        nearer = abs(missing_bad - bad) + abs(missing_good - good) < abs(missing_bad) + abs(missing_good)
        if nearer and number < len(order) - min_prompts:
            chosen[at] = True
            number += 1
            missing_bad, missing_good = missing_bad - bad, missing_good - good
    if number < min_prompts:  # the smallest ones; stable: ties stay in `order`
        smallest = order[np.argsort(counts.sum(axis=0)[order], kind="stable")]
        for at in smallest[~chosen[smallest]][: min_prompts - number]:
            chosen[at] = True
    return chosen


def partners(table: RowTable, seed: int) -> Numbers:
    """For each row, the row whose completion mismatches its prompt; always one with another prompt: (rows,).

    A permutation when no prompt has more than half of the rows, so that each completion is used once;
    otherwise the rows of the other prompts are used in turn, equally often.

    Raises DataError when all rows have the same prompt.
    """
    rows = len(table)
    shuffled = np.random.default_rng(seed).permutation(rows)
    _, first, prompt_of, sizes = np.unique(
        table.prompt_keys[shuffled], return_index=True, return_inverse=True, return_counts=True
    )
    if len(first) < 2:
        raise DataError(
            f"all {rows} rows have the same prompt",
            hint="KTO compares answers to different prompts: use rows with at least two prompts",
        )
    # Rows of one prompt stand together, the largest prompt first, the others in order of appearance.
    largest = int(np.lexsort((first, -sizes))[0])
    rank = first.copy()
    rank[largest] = -1
    ring = shuffled[np.argsort(rank[prompt_of], kind="stable")]
    size = int(sizes[largest])
    partner = np.empty(rows, dtype=np.int64)
    if 2 * size > rows:
        members, others = ring[:size], ring[size:]
        partner[members] = np.resize(others, size)  # in turn
        partner[others] = members[: len(others)]
    else:
        # A shift by the largest prompt's size always leaves the prompt.
        partner[ring] = np.roll(ring, -size)
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
