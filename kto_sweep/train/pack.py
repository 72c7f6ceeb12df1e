"""From rows to the tensors of one forward: sequences one after another in a single row of tokens, no padding.

A row takes part in two ways:

    matched     log pi(y|x): the row's own completion after its prompt
    mismatched  log pi(y'|x): its partner's completion after the same prompt, for z0

`pack` lays out either in full. `pack_onto` lays out the mismatched completions alone, as a continuation of
the prompts of an earlier pack: its tokens are each prompt's last token and the partner's completion, and
their attention reaches the prompt through the keys and values that the earlier forward kept.
The last token of a completion predicts nothing that is asked for, so it is never fed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kto_sweep.data.rows import TokenRow
from kto_sweep.train.attention import Packing, PrefixStore

Ids = NDArray[np.int64]

ROUNDING = {"cuda": 128}
"""Tokens of a forward by kind of device: a multiple of this. Matmul libraries look for a kernel at each new
size, which costs the host more than multiplying some tokens that nobody asks for."""


_NO_IDS: Ids = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class PairedRow:
    """A row with the completion that it is mismatched with; token ids."""

    prompt: Ids
    completion: Ids
    mismatched: Ids
    """The partner's completion, cut so that it fits behind this prompt; at least one token."""
    desirable: bool

    def tokens(self) -> int:
        """Tokens fed for it in one step, matched and mismatched."""
        return len(self.prompt) + len(self.completion) + len(self.mismatched)


def pair_rows(rows: Sequence[TokenRow], partners: Sequence[int], max_length: int) -> list[PairedRow]:
    """The rows with their partners' completions: row i is mismatched with that of row `partners[i]`."""
    completions = [np.asarray(row.completion, dtype=np.int64) for row in rows]
    paired = []
    for row, completion, partner in zip(rows, completions, partners, strict=True):
        room = max(1, max_length - len(row.prompt))
        prompt = np.asarray(row.prompt, dtype=np.int64)
        paired.append(PairedRow(prompt, completion, completions[partner][:room], row.label))
    return paired


@dataclass(frozen=True)
class Item:
    """One example of one forward."""

    row: PairedRow
    slot: int = 0
    """Whose adapters its tokens pass through."""
    example: int = 0
    """Where its log-prob goes among those of the step."""
    noise: int = 0
    """Seed of its dropout: depends on the trial's seed, step and place in the batch, on nothing else."""


@dataclass(frozen=True)
class Pack:
    """One forward: `tokens` fed, `targets` asked for."""

    ids: Tensor
    """(tokens,)"""
    positions: Tensor
    """Place of each token in its own sequence: (tokens,)"""
    attention: Packing
    predicting: Tensor
    """Index of the token whose hidden state predicts each target: (targets,)"""
    targets: Tensor
    """Completion tokens, all sequences': (targets,)"""
    examples: Tensor
    """The example that each target belongs to: (targets,)"""
    slot_ends: Tensor
    """Where each slot's tokens end: int32 (slots,); tokens are sorted by slot."""
    slot_spans: list[tuple[int, int, int]]
    """(slot, first token, end) of the slots that have tokens."""
    noise: Tensor
    """Dropout key of each token: int64 (tokens,)"""
    prompt_starts: list[int] = field(default_factory=list)
    """Where each item's prompt begins in the row."""

    @property
    def tokens(self) -> int:
        """Tokens fed."""
        return int(self.ids.shape[0])


@dataclass
class _Layout:
    """What one sequence adds to the row: numpy pieces, put together once."""

    fed: list[Ids] = field(default_factory=list)
    first_positions: list[int] = field(default_factory=list)
    first_predicting: list[int] = field(default_factory=list)
    targets: list[Ids] = field(default_factory=list)
    prefix_lengths: list[int] = field(default_factory=list)

    def add(self, fed: Ids, *, position: int, predicting: int, targets: Ids, prefix: int = 0) -> None:
        """One sequence: `fed` from `position` on; token `predicting` of it predicts the first target."""
        self.fed.append(fed)
        self.first_positions.append(position)
        self.first_predicting.append(predicting)
        self.targets.append(targets)
        self.prefix_lengths.append(prefix)


def pack(
    items: Sequence[Item], slots: int, device: torch.device, *, mismatched: bool = False, keep: bool = False
) -> Pack:
    """Prompts and completions in full; with `keep`, the forward keeps keys and values for `pack_onto`.

    `items` come sorted by slot.
    """
    layout = _Layout()
    for item in items:
        completion = item.row.mismatched if mismatched else item.row.completion
        prompt = item.row.prompt
        fed = np.concatenate([prompt, completion[:-1]])
        layout.add(fed, position=0, predicting=len(prompt) - 1, targets=completion)
    store = PrefixStore() if keep else None
    return _assemble(items, layout, slots, device, keep=store, mismatched=mismatched)


def pack_onto(
    base: Pack, base_items: Sequence[Item], items: Sequence[Item], slots: int, device: torch.device
) -> Pack:
    """The mismatched completions of `items`, some of `base_items`, continuing their prompts in `base`."""
    starts = dict(zip((item.example for item in base_items), base.prompt_starts, strict=True))
    layout = _Layout()
    pieces: list[Ids] = []
    own = base.tokens
    for item in items:
        prompt, completion = item.row.prompt, item.row.mismatched
        # The last prompt token is fed again, with its key and value: the prefix ends before it.
        prefix = len(prompt) - 1
        layout.add(
            np.concatenate([prompt[-1:], completion[:-1]]),
            position=prefix, predicting=0, targets=completion, prefix=prefix,
        )  # fmt: skip
        start = starts[item.example]
        pieces += [np.arange(start, start + prefix), np.arange(own, own + len(completion))]
        own += len(completion)
    gather = np.concatenate(pieces)
    return _assemble(items, layout, slots, device, prefix=base.attention.keep, gather=gather, mismatched=True)


def _assemble(
    items: Sequence[Item],
    layout: _Layout,
    slots: int,
    device: torch.device,
    *,
    mismatched: bool,
    keep: PrefixStore | None = None,
    prefix: PrefixStore | None = None,
    gather: Ids | None = None,
) -> Pack:
    lengths = [len(fed) for fed in layout.fed]
    filling = -sum(lengths) % ROUNDING.get(device.type, 1)
    if filling:
        # A sequence of its own, which predicts nothing: it has no effect and no gradient.
        layout.add(np.zeros(filling, dtype=np.int64), position=0, predicting=0, targets=_NO_IDS)
        if gather is not None:
            last = int(gather.max()) + 1
            gather = np.concatenate([gather, np.arange(last, last + filling)])
    lengths = [len(fed) for fed in layout.fed]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    counts = [len(targets) for targets in layout.targets]
    places = [np.arange(n) for n in lengths]
    key_lengths = [n + before for n, before in zip(lengths, layout.prefix_lengths, strict=True)]
    slots_of = [item.slot for item in items]
    spans = _slot_spans([*slots_of, slots_of[-1]] if filling else slots_of, starts)
    long = ship(
        {
            "ids": np.concatenate(layout.fed),
            "positions": np.concatenate(
                [place + at for place, at in zip(places, layout.first_positions, strict=True)]
            ),
            "predicting": np.concatenate(
                [
                    start + first + np.arange(n)
                    for start, first, n in zip(starts[:-1], layout.first_predicting, counts, strict=True)
                ]
            ),
            "targets": np.concatenate(layout.targets),
            "examples": np.repeat([item.example for item in items], counts[: len(items)]),
            "noise": np.concatenate(
                [_noise_keys(items, layout, lengths, mismatched), np.zeros(filling, dtype=np.int64)]
            ),
            "gather": gather if gather is not None else _NO_IDS,
        },
        device,
    )
    ends = np.zeros(slots, dtype=np.int64)
    for slot, _, end in spans:
        ends[slot] = end
    short = ship(
        {
            "queries": starts,
            "keys": np.concatenate([[0], np.cumsum(key_lengths)]),
            "slots": np.maximum.accumulate(ends),
        },
        device,
        torch.int32,
    )
    attention = Packing(
        query_lengths=lengths, key_lengths=key_lengths, query_ends=short["queries"], key_ends=short["keys"],
        keep=keep, prefix=prefix, gather=long["gather"] if gather is not None else None,
    )  # fmt: skip
    return Pack(
        ids=long["ids"], positions=long["positions"], attention=attention, predicting=long["predicting"],
        targets=long["targets"], examples=long["examples"], slot_ends=short["slots"], slot_spans=spans,
        noise=long["noise"], prompt_starts=[int(start) for start in starts[: len(items)]],
    )  # fmt: skip


def _slot_spans(slots: Sequence[int], starts: Ids) -> list[tuple[int, int, int]]:
    if any(after < before for before, after in pairwise(slots)):
        raise ValueError(f"items are not sorted by slot: {list(slots)}")
    spans: list[tuple[int, int, int]] = []
    for at, slot in enumerate(slots):
        first = spans.pop()[1] if spans and spans[-1][0] == slot else int(starts[at])
        spans.append((slot, first, int(starts[at + 1])))
    return spans


def _noise_keys(items: Sequence[Item], layout: _Layout, lengths: Sequence[int], mismatched: bool) -> Ids:
    """A key per token from its item's noise, its position, and whether it is a token of the mismatched pass.

    The prompt before its last token is the same in both passes, and so has the same key: whether the
    mismatched pass shares its keys and values or computes them again changes nothing.
    """
    keys = []
    # What fills the row up comes last and is no item's.
    for item, at, n in zip(items, layout.first_positions, lengths, strict=False):
        position = np.arange(at, at + n, dtype=np.int64)
        own = (position >= len(item.row.prompt) - 1) if mismatched else np.zeros(n, dtype=bool)
        keys.append(mix(np.int64(item.noise) ^ mix(position * 2 + own)))
    return np.concatenate(keys)


def mix(values: NDArray[np.int64] | np.int64) -> NDArray[np.int64]:
    """A 64-bit hash of each value (the finaliser of splitmix64, doi 10.1145/2714064.2660195)."""
    z = np.atleast_1d(np.asarray(values)).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).view(np.int64)


def ship(
    arrays: Mapping[str, NDArray[Any]], device: torch.device, dtype: torch.dtype = torch.int64
) -> dict[str, Tensor]:
    """The arrays as tensors on `device`, moved in one copy that the host does not wait for."""
    joined = torch.from_numpy(np.concatenate(list(arrays.values()))).to(dtype)
    if device.type == "cuda":
        joined = joined.pin_memory().to(device, non_blocking=True)
    pieces = torch.split(joined, [len(array) for array in arrays.values()])
    return dict(zip(arrays, pieces, strict=True))
