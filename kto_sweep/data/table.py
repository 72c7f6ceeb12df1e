"""The rows of a data set as columns: a million rows take some 100 MB, and their tokens may stay on disk."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kto_sweep.data.rows import TokenRow

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]
TokenIds = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class RowTable(Sequence[TokenRow]):
    """Usable rows in file order; `table[i]` is one row's token ids.

    `prompt_ids(i)` is ids[boundaries[i] - prompt_lengths[i] : boundaries[i]], and the completion follows.
    """

    lines: Numbers
    """Line of each row in the data set: (rows,), as all columns."""
    labels: Flags
    """True: desirable."""
    prompt_keys: Numbers
    """Equal for equal prompts (see keys.py)."""
    completion_keys: Numbers
    text_keys: Numbers
    """Of the completions without their tool calls; 0 where there is only a call."""
    prompt_lengths: Numbers
    """In tokens, or in characters without a tokenizer."""
    completion_lengths: Numbers
    ids: TokenIds | None = None
    """The tokens of all rows, prompts and completions in turn: (tokens,), possibly mapped from a file. None
    without a tokenizer."""
    boundaries: Numbers | None = None
    """Index in `ids` of each row's first completion token; None without a tokenizer."""
    headed: Flags | None = None
    """Rows whose prompt lost its start and begins with `begin` again; None: no row."""
    begin: int | None = None
    """The beginning-of-text token."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        at = range(len(self))[index]
        return TokenRow(
            self.prompt_ids(at).tolist(),
            self.completion_ids(at).tolist(),
            bool(self.labels[at]),
            int(self.prompt_keys[at]),
        )

    def prompt_ids(self, at: int) -> TokenIds:
        """Token ids of row `at`'s prompt."""
        assert self.ids is not None
        assert self.boundaries is not None
        end = self.boundaries[at]
        ids = self.ids[end - self.prompt_lengths[at] : end]
        if self.headed is not None and self.headed[at]:
            ids = ids.copy()  # the file stays as it is
            assert self.begin is not None
            ids[0] = self.begin
        return ids

    def completion_ids(self, at: int) -> TokenIds:
        """Token ids of row `at`'s completion."""
        assert self.ids is not None
        assert self.boundaries is not None
        start = self.boundaries[at]
        return self.ids[start : start + self.completion_lengths[at]]

    @property
    def counts(self) -> tuple[int, int]:
        """(desirable, undesirable) rows."""
        desirable = int(self.labels.sum())
        return desirable, len(self) - desirable

    @property
    def tokens(self) -> int:
        """Tokens of all prompts and completions."""
        return int(self.prompt_lengths.sum() + self.completion_lengths.sum())

    def prompts(self) -> int:
        """Number of distinct prompts."""
        return len(np.unique(self.prompt_keys))

    def take(self, chosen: Sequence[int] | Numbers | Flags) -> "RowTable":
        """The chosen rows, by index or by a flag for each row."""
        at = np.asarray(chosen)
        if at.size == 0:
            at = at.astype(np.int64)
        return replace(
            self,
            lines=self.lines[at],
            labels=self.labels[at],
            prompt_keys=self.prompt_keys[at],
            completion_keys=self.completion_keys[at],
            text_keys=self.text_keys[at],
            prompt_lengths=self.prompt_lengths[at],
            completion_lengths=self.completion_lengths[at],
            boundaries=None if self.boundaries is None else self.boundaries[at],
            headed=None if self.headed is None else self.headed[at],
        )

    def fingerprint(self, cut_to: int | None) -> str:
        """16 hex digits that change with the text or the label of any row, and with `cut_to`.

        `cut_to` is max_length if it cuts any of the rows, else None. The text is that of the data set: models
        with other tokenizers and chat templates are judged on the same rows, which is what eval/common_loss
        compares across models.
        """
        columns = (self.prompt_keys, self.completion_keys, self.labels.astype(np.int64))
        order = np.lexsort(columns)
        digest = hashlib.sha256(str(cut_to).encode())
        for column in columns:
            digest.update(column[order].tobytes())
        return digest.hexdigest()[:16]

    def cut(self, max_length: int) -> "RowTable":
        """Rows of at most `max_length` tokens of prompt and completion together, at least 2.

        A row that is too long loses the start of its prompt, down to half of max_length, then the end of its
        completion: the question is usually at the end of the prompt, and a truncated answer still teaches its
        start. (TRL truncates only the end, and drops rows whose prompt fills max_length.) A beginning-of-text
        token stays in front, because models fail without it.
        """
        prompts, completions = self.prompt_lengths, self.completion_lengths
        long = prompts + completions > max_length
        if not long.any():
            return self
        room = np.maximum(max_length - completions, max_length // 2)
        kept = np.where(long, np.minimum(prompts, room), prompts)
        headed = None
        if self.ids is not None and self.boundaries is not None and self.begin is not None:
            begun = self.ids[self.boundaries - prompts] == self.begin
            headed = (kept < prompts) & begun & (kept > 1)
        return replace(
            self,
            prompt_lengths=kept,
            completion_lengths=np.where(long, np.minimum(completions, max_length - kept), completions),
            headed=headed,
        )

    @classmethod
    def from_rows(cls, rows: Iterable[TokenRow]) -> "RowTable":
        """A table of rows in memory, such as those of a test."""
        rows = list(rows)
        ids = [*(token for row in rows for token in (*row.prompt, *row.completion))]
        prompts = _numbers([len(row.prompt) for row in rows])
        completions = _numbers([len(row.completion) for row in rows])
        ends = np.cumsum(prompts + completions)
        return cls(
            lines=np.arange(1, len(rows) + 1),
            labels=np.array([row.label for row in rows], dtype=bool),
            prompt_keys=_numbers([row.prompt_key for row in rows]),
            completion_keys=_numbers([hash(tuple(row.completion)) for row in rows]),
            text_keys=_numbers([0] * len(rows)),
            prompt_lengths=prompts,
            completion_lengths=completions,
            ids=np.array(ids, dtype=np.int32),
            boundaries=ends - completions,
        )


def _numbers(values: Sequence[int]) -> Numbers:
    return np.array(values, dtype=np.int64)


def equal_rows(*keys: Numbers) -> list[Numbers]:
    """Indices of rows that are equal in all keys, for each group of two or more, in order of appearance."""
    if not len(keys[0]):
        return []
    order = np.lexsort(keys[::-1])  # stable: ascending within a group
    differs = np.zeros(len(order) - 1, dtype=bool)
    for key in keys:
        differs |= key[order[1:]] != key[order[:-1]]
    starts = np.concatenate([[0], np.flatnonzero(differs) + 1])
    sizes = np.diff(starts, append=len(order))
    several = sizes > 1  # arrays are made for these only: most groups of a million rows have one row
    groups = [order[at : at + size] for at, size in zip(starts[several], sizes[several], strict=True)]
    return sorted(groups, key=lambda group: int(group[0]))
