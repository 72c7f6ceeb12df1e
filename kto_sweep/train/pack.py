"""From rows to the tensors of one forward: sequences one after another in a single row of tokens, no padding.

A row takes part in two ways:

    matched     log pi(y|x): the row's own completion after its prompt
    mismatched  log pi(y'|x): its partner's completion after the same prompt, for z0

`pack` lays out either in full, what prompts of a slot begin with once (see prefixes.py). `pack_onto` lays out
the mismatched completions alone, as a continuation of the prompts of an earlier pack: its tokens are each
prompt's last token and the partner's completion, and their attention reaches the prompt through the keys and
values that the earlier forward kept.
The last token of a completion predicts nothing that is asked for, so it is never fed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kto_sweep.data.rows import TokenRow
from kto_sweep.train.attention import Packing, PrefixStore
from kto_sweep.train.prefixes import Piece, tree, whole

Ids = NDArray[np.int64]

ROUNDING = {"cuda": 128}
"""Tokens of a forward by kind of device: a multiple of this. Matmul libraries look for a kernel at each new
size, which costs the host more than multiplying some tokens that nobody asks for."""

WORTH = 16
"""Beginnings are shared where more than 1 / WORTH of a slot's tokens are saved: collecting keys costs too."""


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
    """Seed of its dropout, 0 without: depends on the trial's seed, step and place in the batch only."""


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
    prompts: list[Ids] = field(default_factory=list)
    """Where each item's prompt is, its last token aside."""

    @property
    def tokens(self) -> int:
        """Tokens fed."""
        return int(self.ids.shape[0])


@dataclass(frozen=True)
class _Sequence:
    """Tokens that lie one after another in the row; token `predicting` of them predicts the first target."""

    fed: Ids
    position: int
    """Of the first of them, in their prompt."""
    slot: int
    noise: Ids
    before: Ids
    """Where the tokens before them are: their attention reaches those first, then their own."""
    targets: Ids
    predicting: int = 0
    example: int = 0


def pack(
    items: Sequence[Item],
    slots: int,
    device: torch.device,
    *,
    mismatched: bool = False,
    keep: bool = False,
    share: bool = True,
) -> Pack:
    """Prompts and completions in full; with `keep`, the forward keeps keys and values for `pack_onto`.

    With `share`, what several prompts of a slot begin with is fed once. `items` come sorted by slot.
    """
    sequences: list[_Sequence] = []
    prompts: dict[int, Ids] = {}
    at = 0
    for slot, group in groupby(range(len(items)), key=lambda at: items[at].slot):
        places: list[Ids] = []
        own = list(group)
        for piece in _pieces([items[each] for each in own], mismatched, share):
            item = items[own[piece.row]]
            completion = item.row.mismatched if mismatched else item.row.completion
            targets = completion if piece.last else _NO_IDS
            fed = np.concatenate([item.row.prompt[piece.begin : piece.end], targets[:-1]])
            before = _NO_IDS if piece.after is None else places[piece.after]
            places.append(np.concatenate([before, np.arange(at, at + len(fed))]))
            at += len(fed)
            predicting = len(item.row.prompt) - 1 - piece.begin
            noise = _noise_keys(item, piece.begin, len(fed), mismatched)
            sequences.append(
                _Sequence(fed, piece.begin, slot, noise, before, targets, predicting, item.example)
            )
            if piece.last:
                prompts[own[piece.row]] = places[-1][: len(item.row.prompt) - 1]
    store = PrefixStore() if keep else None
    made = _assemble(sequences, slots, device, keep=store)
    return replace(made, prompts=[prompts[each] for each in range(len(items))])


def _pieces(items: Sequence[Item], mismatched: bool, share: bool) -> list[Piece]:
    """How the prompts of one slot are fed: with `share`, shared beginnings once where that saves enough."""
    prompts = [item.row.prompt for item in items]
    if not share or any(item.noise for item in items):
        return whole(prompts)  # each example has a dropout of its own, from its first token on
    pieces = tree(prompts)
    fed = sum(piece.end - piece.begin for piece in pieces)
    saved = sum(map(len, prompts)) - fed
    fed += sum(len(item.row.mismatched if mismatched else item.row.completion) - 1 for item in items)
    return pieces if saved * WORTH > fed else whole(prompts)


def pack_onto(
    base: Pack, base_items: Sequence[Item], items: Sequence[Item], slots: int, device: torch.device
) -> Pack:
    """The mismatched completions of `items`, some of `base_items`, continuing their prompts in `base`."""
    prompts = dict(zip((item.example for item in base_items), base.prompts, strict=True))
    sequences = []
    for item in items:
        prompt, completion = item.row.prompt, item.row.mismatched
        # The last prompt token is fed again, with its key and value: the prefix ends before it.
        before = len(prompt) - 1
        fed = np.concatenate([prompt[-1:], completion[:-1]])
        noise = _noise_keys(item, before, len(fed), mismatched=True)
        sequences.append(
            _Sequence(fed, before, item.slot, noise, prompts[item.example], completion, example=item.example)
        )
    return _assemble(sequences, slots, device, base=base)


def _assemble(
    sequences: list[_Sequence],
    slots: int,
    device: torch.device,
    *,
    keep: PrefixStore | None = None,
    base: Pack | None = None,
) -> Pack:
    filling = -sum(len(each.fed) for each in sequences) % ROUNDING.get(device.type, 1)
    if filling:
        # A sequence of its own, which predicts nothing: it has no effect and no gradient.
        nothing = np.zeros(filling, dtype=np.int64)
        sequences = [*sequences, _Sequence(nothing, 0, sequences[-1].slot, nothing, _NO_IDS, _NO_IDS)]
    lengths = [len(each.fed) for each in sequences]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    key_lengths = [len(each.before) + n for each, n in zip(sequences, lengths, strict=True)]
    spans = _slot_spans([each.slot for each in sequences], starts)
    gather = None
    if base is not None or any(len(each.before) for each in sequences):
        own = starts + (base.tokens if base is not None else 0)
        keys = zip(sequences, own[:-1], own[1:], strict=True)
        gather = np.concatenate(
            [piece for each, start, end in keys for piece in (each.before, np.arange(start, end))]
        )
    long = ship(
        {
            "ids": np.concatenate([each.fed for each in sequences]),
            "positions": np.concatenate(
                [each.position + np.arange(n) for each, n in zip(sequences, lengths, strict=True)]
            ),
            "predicting": np.concatenate(
                [
                    start + each.predicting + np.arange(len(each.targets))
                    for start, each in zip(starts[:-1], sequences, strict=True)
                ]
            ),
            "targets": np.concatenate([each.targets for each in sequences]),
            "examples": np.repeat(
                [each.example for each in sequences], [len(each.targets) for each in sequences]
            ),
            "noise": np.concatenate([each.noise for each in sequences]),
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
        keep=keep, prefix=base.attention.keep if base is not None else None,
        gather=long["gather"] if gather is not None else None,
    )  # fmt: skip
    return Pack(
        ids=long["ids"], positions=long["positions"], attention=attention, predicting=long["predicting"],
        targets=long["targets"], examples=long["examples"], slot_ends=short["slots"], slot_spans=spans,
        noise=long["noise"],
    )  # fmt: skip


def _slot_spans(slots: Sequence[int], starts: Ids) -> list[tuple[int, int, int]]:
    if any(after < before for before, after in pairwise(slots)):
        raise ValueError(f"items are not sorted by slot: {list(slots)}")
    spans: list[tuple[int, int, int]] = []
    for at, slot in enumerate(slots):
        first = spans.pop()[1] if spans and spans[-1][0] == slot else int(starts[at])
        spans.append((slot, first, int(starts[at + 1])))
    return spans


def _noise_keys(item: Item, first: int, tokens: int, mismatched: bool) -> Ids:
    """A key for each token from `first` on: its item's noise, its position, whether it is a mismatched one.

    The prompt before its last token is the same in both passes, and so has the same key: whether the
    mismatched pass shares its keys and values or computes them again changes nothing.
    """
    position = np.arange(first, first + tokens, dtype=np.int64)
    own = (position >= len(item.row.prompt) - 1) & mismatched
    return mix(np.int64(item.noise) ^ mix(position * 2 + own))


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
