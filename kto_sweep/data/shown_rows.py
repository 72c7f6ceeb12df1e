"""Rows as the model gets them: decoded from token ids, with special tokens visible."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kto_sweep.data.examples import Places
from kto_sweep.data.table import Flags, RowTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TAIL = 3
"""Tokens at a completion's end that may be the stop token: templates often write a line break after it."""


@dataclass(frozen=True)
class ShownRow:
    """One row after truncation."""

    line: int | str
    """Line in the file; with several files, file and line."""
    label: bool
    prompt: str
    completion: str
    prompt_tokens: int
    completion_tokens: int
    cut: str | None
    """What max_length truncated: `start of prompt`, `end of completion`, or both; None: nothing."""
    ends: bool
    """Whether the completion ends with a token at which the model stops."""

    def described(self) -> list[str]:
        """Lines for people; line breaks and special tokens are visible."""
        facts = [
            f"label {str(self.label).lower()}",
            f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens",
            *([f"cut: {self.cut}"] if self.cut else []),
            "ends with a stop token" if self.ends else "does not end with a stop token",
        ]
        return [
            f"Row {self.line}: {'; '.join(facts)}",
            f"  prompt      {_visible(self.prompt)}",
            f"  completion  {_visible(self.completion)}",
        ]


def _visible(text: str) -> str:
    """The text on one line, with control characters as escapes, so that nothing in it moves the cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class RowInspector:
    """Shows rows as the model gets them, and tells whether it stops after their completions."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", ids: Iterable[int]) -> None:
        """`ids`: of the tokens at which the model stops."""
        self._tokenizer = tokenizer
        self._ids = np.array(sorted(ids), dtype=np.int64)
        end = tokenizer.eos_token
        self.end_text = str(end) if end else None
        """The tokenizer's end-of-text token."""

    def ends(self, table: RowTable) -> Flags:
        """Rows whose completion ends with a stop token, white space after it aside: (rows,)."""
        ends = np.zeros(len(table), dtype=bool)
        if table.ids is None or table.boundaries is None:  # no row
            return ends
        open_rows = np.arange(len(table))  # rows whose tail so far is white space
        last = table.boundaries + table.completion_lengths - 1
        for back in range(_TAIL):
            open_rows = open_rows[table.completion_lengths[open_rows] > back]
            tokens = np.asarray(table.ids[last[open_rows] - back])
            stopped = np.isin(tokens, self._ids)
            ends[open_rows[stopped]] = True
            kinds, kind_of = np.unique(tokens, return_inverse=True)
            blank = np.array([not self._decode([kind]).strip() for kind in kinds.tolist()], dtype=bool)
            open_rows = open_rows[~stopped & blank[kind_of]] if len(kinds) else open_rows
        return ends

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def show(self, table: RowTable, max_length: int, places: Places, count: int) -> tuple[ShownRow, ...]:
        """The first `count` rows of a table that is not truncated."""
        whole = table.take(np.arange(min(count, len(table))))
        cut, ends = whole.cut(max_length), self.ends(whole.cut(max_length))
        several = len(places.files) > 1
        return tuple(
            ShownRow(
                line=places.name(line) if several else line,
                label=bool(cut.labels[at]),
                prompt=self._decode(cut.prompt_ids(at).tolist()),
                completion=self._decode(cut.completion_ids(at).tolist()),
                prompt_tokens=int(cut.prompt_lengths[at]),
                completion_tokens=int(cut.completion_lengths[at]),
                cut=_cut(
                    bool(cut.prompt_lengths[at] < whole.prompt_lengths[at]),
                    bool(cut.completion_lengths[at] < whole.completion_lengths[at]),
                ),
                ends=bool(ends[at]),
            )
            for at, line in enumerate(whole.lines.tolist())
        )


def _cut(start: bool, end: bool) -> str | None:
    parts = [name for name, is_cut in (("start of prompt", start), ("end of completion", end)) if is_cut]
    return ", ".join(parts) or None
