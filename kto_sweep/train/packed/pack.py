"""From rows to the tensors of one forward: sequences one after another in a single row of tokens, no padding.

Each row is used in two ways:

    matched     log pi(y|x): the row's own completion after its prompt
    mismatched  log pi(y'|x): its partner's completion after the same prompt, for z0

`pack` lays out prompts and completions in full, with the shared beginnings of a slot's prompts once (see
prefixes.py). `pack_onto` lays out the mismatched completions as continuations of the prompts in an earlier
pack: only each prompt's last token and the partner's completion are fed, and their attention reaches the rest
of the prompt through the keys and values that the earlier forward kept.

The last token of a completion predicts no target, so it is never fed.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kto_sweep.data.keys import hash64
from kto_sweep.data.table import Flags, Numbers, RowTable, TokenIds
from kto_sweep.train.packed.attention import Packing, PrefixStore
from kto_sweep.train.packed.prefixes import PromptSegment, tree, whole

if TYPE_CHECKING:
    import hashlib

Ids = NDArray[np.int64]

ROUNDING = {"cuda": 128}
"""Tokens of a forward are a multiple of this, by kind of device. cuBLAS searches for a kernel at each new
size, which costs the host more than the extra tokens cost the GPU."""

MIN_SAVING = 16
"""Beginnings are shared if that saves more than 1 / MIN_SAVING of a slot's tokens: gathering costs too."""


_HASHED = 4096
"""Rows hashed at once."""

_NO_IDS: Ids = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class PairedRow:
    """A row with the completion that it is mismatched with; arrays of token ids."""

    prompt: Ids
    completion: Ids
    mismatched: Ids
    """The partner's completion, cut to fit after this prompt; at least one token."""
    desirable: bool

    def tokens(self) -> int:
        """Number of tokens in one step, matched and mismatched: an upper bound of those fed."""
        return len(self.prompt) + len(self.completion) + len(self.mismatched)


class PairedRows(Sequence[PairedRow]):
    """The rows of a table with their partners' completions; a row's arrays are made when it is asked for."""

    def __init__(self, table: RowTable, partners: Sequence[int] | Numbers, max_length: int) -> None:
        """Row i is mismatched with the completion of row `partners[i]`, cut to fit in `max_length` tokens."""
        self._table = table
        self._partners = np.asarray(partners, dtype=np.int64)
        self._room = np.maximum(1, max_length - table.prompt_lengths)
        self._chosen = np.arange(len(table))
        """Rows of the table: a slice has fewer, with partners that may be outside it."""

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            part = copy(self)
            part._chosen = self._chosen[index]
            return part
        at = int(self._chosen[index])
        table = self._table
        return PairedRow(
            table.prompt_ids(at).astype(np.int64),
            table.completion_ids(at).astype(np.int64),
            table.completion_ids(int(self._partners[at]))[: self._room[at]].astype(np.int64),
            bool(table.labels[at]),
        )

    @property
    def desirable(self) -> Flags:
        """The labels: (rows,)."""
        return self._table.labels[self._chosen]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, matched or mismatched; 0 without rows."""
        mismatched = np.minimum(self._table.completion_lengths[self._partners], self._room)
        completions = np.maximum(self._table.completion_lengths, mismatched)
        return int((self._table.prompt_lengths + completions)[self._chosen].max(initial=0))

    def update(self, digest: "hashlib._Hash") -> None:
        """Feed a hash with the tokens, labels and partners of all rows, in order."""
        table = self._table
        # With lengths: otherwise a token could move from a prompt to its completion unnoticed.
        mismatched = np.minimum(table.completion_lengths[self._partners], self._room)
        columns = (table.prompt_lengths, table.completion_lengths, mismatched, self._partners, table.labels)
        for column in columns:
            digest.update(column[self._chosen].astype(np.int64).tobytes())
        for start in range(0, len(self), _HASHED):  # in blocks: row by row, a million rows take half a minute
            ids: list[TokenIds] = []
            for at in self._chosen[start : start + _HASHED].tolist():
                ids += (table.prompt_ids(at), table.completion_ids(at))
            digest.update(np.concatenate(ids).tobytes())


class ChosenRows(Sequence[PairedRow]):
    """Some rows of several PairedRows, one after another."""

    def __init__(self, chosen: Iterable[tuple[PairedRows, int]]) -> None:
        self._chosen = list(chosen)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        rows, at = self._chosen[index]
        return rows[at]


@dataclass(frozen=True)
class Item:
    """One example of one forward."""

    row: PairedRow
    slot: int = 0
    """Its tokens pass through the adapters of this slot."""
    example: int = 0
    """Index of its log-prob among those of the step."""
    noise: int = 0
    """Seed of its dropout, 0 without: from the trial's seed, step and place in the batch only."""


@dataclass(frozen=True)
class Pack:
    """The tensors of one forward."""

    ids: Tensor
    """(tokens,)"""
    positions: Tensor
    """Position of each token in its own sequence: (tokens,)"""
    attention: Packing
    predicting: Tensor
    """Index in the row of the token that predicts each target: (targets,)"""
    targets: Tensor
    """Completion tokens of all sequences: (targets,)"""
    examples: Tensor
    """The example that each target belongs to: (targets,)"""
    slot_ends: Tensor
    """End of each slot's tokens in the row: int32 (slots,); tokens are sorted by slot."""
    slot_spans: list[tuple[int, int, int]]
    """(slot, first token, end) of the slots that have tokens."""
    noise: Tensor
    """Dropout key of each token: int64 (tokens,)"""
    prompts: list[Ids] = field(default_factory=list)
    """For each item, the indices in the row of its prompt without the last token."""

    @property
    def tokens(self) -> int:
        """Tokens fed."""
        return int(self.ids.shape[0])


@dataclass(frozen=True)
class _Sequence:
    """Consecutive tokens of the row that attend to each other."""

    fed: Ids
    position: int
    """Position of the first token in its prompt."""
    slot: int
    noise: Ids
    before: Ids
    """Indices of the tokens before them: attention sees those first, then the own ones."""
    targets: Ids
    predicting: int = 0
    """Place, in this sequence, of the token that predicts the first target."""
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
    """Prompts and completions in full. `items` must be sorted by slot.

    With `keep`, the forward keeps keys and values for `pack_onto`; with `share`, shared beginnings of a
    slot's prompts are fed once.
    """
    sequences: list[_Sequence] = []
    prompts: dict[int, Ids] = {}
    at = 0
    for slot, group in groupby(range(len(items)), key=lambda at: items[at].slot):
        places: list[Ids] = []  # of each segment's tokens in the row, with all tokens before them
        own = list(group)
        # Only within a slot: other adapters give the same tokens other hidden states.
        for piece in _segments([items[index] for index in own], mismatched, share):
            item = items[own[piece.row]]
            completion = item.row.mismatched if mismatched else item.row.completion
            targets = completion if piece.last else _NO_IDS
            fed = np.concatenate([item.row.prompt[piece.begin : piece.end], targets[:-1]])
            # Segments come after the ones above them, so those have their places.
            before = _NO_IDS if piece.after is None else places[piece.after]
            places.append(np.concatenate([before, np.arange(at, at + len(fed))]))
            at += len(fed)
            # The prompt's last token predicts the first target; a segment may start inside it.
            predicting = len(item.row.prompt) - 1 - piece.begin
            noise = _noise_keys(item, piece.begin, len(fed), mismatched)
            sequences.append(
                _Sequence(fed, piece.begin, slot, noise, before, targets, predicting, item.example)
            )
            if piece.last:
                prompts[own[piece.row]] = places[-1][: len(item.row.prompt) - 1]
    forward = _assemble(sequences, slots, device, keep=PrefixStore() if keep else None)
    return replace(forward, prompts=[prompts[index] for index in range(len(items))])


def _segments(items: Sequence[Item], mismatched: bool, share: bool) -> list[PromptSegment]:
    """The prompts of one slot as segments: with `share`, shared beginnings once if that saves enough."""
    prompts = [item.row.prompt for item in items]
    if not share or any(item.noise for item in items):
        return whole(prompts)  # with dropout every example differs from its first token on
    segments = tree(prompts)
    fed = sum(segment.end - segment.begin for segment in segments)
    saved = sum(map(len, prompts)) - fed
    fed += sum(len(item.row.mismatched if mismatched else item.row.completion) - 1 for item in items)
    return segments if saved * MIN_SAVING > fed else whole(prompts)


def pack_onto(
    base: Pack, base_items: Sequence[Item], items: Sequence[Item], slots: int, device: torch.device
) -> Pack:
    """The mismatched completions of `items`, some of `base_items`, continuing their prompts in `base`."""
    prompts = dict(zip((item.example for item in base_items), base.prompts, strict=True))
    sequences = []
    for item in items:
        prompt, completion = item.row.prompt, item.row.mismatched
        # The last prompt token is fed again: its hidden state predicts the first completion token. So the
        # kept prefix ends before it.
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
    # All index arrays are built on the host in numpy and cross in two copies: on a GPU they would be dozens
    # of small kernels per forward.
    filling = -sum(len(each.fed) for each in sequences) % ROUNDING.get(device.type, 1)
    if filling:
        # Padding is one more sequence without targets: no other token sees it, and it has no gradient.
        nothing = np.zeros(filling, dtype=np.int64)
        sequences = [*sequences, _Sequence(nothing, 0, sequences[-1].slot, nothing, _NO_IDS, _NO_IDS)]
    lengths = [len(each.fed) for each in sequences]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    key_lengths = [len(each.before) + n for each, n in zip(sequences, lengths, strict=True)]
    spans = _slot_spans([each.slot for each in sequences], starts)
    # A sequence's keys are those of the tokens before it, which lie elsewhere in the row or in the kept
    # forward, then its own. Kernels want them contiguous: `gather` lists each key's index in [kept forward;
    # this row].
    gather = None
    if base is not None or any(len(each.before) for each in sequences):
        own = starts + (base.tokens if base is not None else 0)  # this row comes after the kept one
        keys = zip(sequences, own[:-1], own[1:], strict=True)
        gather = np.concatenate(
            [piece for each, start, end in keys for piece in (each.before, np.arange(start, end))]
        )
    long = to_device(
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
    # An empty slot ends where the one before it does: grouped kernels then see a group of 0 tokens.
    ends = np.zeros(slots, dtype=np.int64)
    for slot, _, end in spans:
        ends[slot] = end
    short = to_device(
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
        # Consecutive sequences of one slot are one span: one product instead of several.
        first = spans.pop()[1] if spans and spans[-1][0] == slot else int(starts[at])
        spans.append((slot, first, int(starts[at + 1])))
    return spans


def _noise_keys(item: Item, first: int, tokens: int, mismatched: bool) -> Ids:
    """A dropout key for each token from `first` on, (tokens,): from its item's noise, position and pass.

    The prompt before its last token has the same keys in both passes, so it does not matter whether the
    mismatched pass reuses its keys and values or computes them again.
    """
    position = np.arange(first, first + tokens, dtype=np.int64)
    own = (position >= len(item.row.prompt) - 1) & mismatched
    return hash64(np.int64(item.noise) ^ hash64(position * 2 + own))


def to_device(
    arrays: Mapping[str, NDArray[Any]], device: torch.device, dtype: torch.dtype = torch.int64
) -> dict[str, Tensor]:
    """The arrays, (n,) each, as tensors on `device`, moved in one copy that the host does not wait for."""
    joined = torch.from_numpy(np.concatenate(list(arrays.values()))).to(dtype)
    if device.type == "cuda":
        # From pageable memory, non_blocking would still block the host.
        joined = joined.pin_memory().to(device, non_blocking=True)
    pieces = torch.split(joined, [len(array) for array in arrays.values()])
    return dict(zip(arrays, pieces, strict=True))
