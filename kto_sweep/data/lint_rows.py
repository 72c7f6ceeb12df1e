"""Rows with what only the linter needs: line numbers, lengths before truncation, which rows are truncated."""

import json
import sys
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from kto_sweep.data.formats import BadRow, LoadedData, parse_row
from kto_sweep.data.messages import BadRowError, calls_as_text
from kto_sweep.data.rows import Example, Message, TokenRow
from kto_sweep.data.sources import read_rows
from kto_sweep.data.tokenise import Encoder, TokenisedData, tokenise, truncate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Unit = Literal["tokens", "characters"]
Lengths = NDArray[np.int64]

CHARACTERS_PER_TOKEN = 3.3
"""Average for English with some code or JSON, and vocabularies of 50,000 tokens or more."""


@dataclass(frozen=True)
class ReadData:
    """A data file as training reads it, with line numbers instead of counts."""

    loaded: LoadedData
    """May have no examples."""
    cut_turns: list[int]
    """Lines of rows with turns after the last assistant turn."""


@dataclass(frozen=True)
class MeasuredData:
    """The rows that training would get, and their lengths before truncation; all lists in file order."""

    unit: Unit
    """Unit of the lengths: characters when there is no tokenizer; `tokens` then has placeholders."""
    tokens: TokenisedData
    examples: list[Example]
    """The example of each row."""
    prompts: Lengths
    completions: Lengths
    cut_prompts: list[int]
    """Lines of rows whose prompt loses its beginning to max_length."""
    cut_completions: list[int]
    """Lines of rows whose completion loses its end to max_length."""

    @property
    def labels(self) -> NDArray[np.bool_]:
        """True for desirable rows."""
        return np.array([row.label for row in self.tokens.rows], dtype=bool)


def read_data(source: str | Sequence[str], base_dirs: Sequence[Path] = ()) -> ReadData:
    """Every row of one source or several; unlike `load_examples`, also when no row is usable.

    Raises DataError: no such file; a line that is not JSON.
    """
    path, rows = read_rows(source, base_dirs)
    examples: list[Example] = []
    bad: list[BadRow] = []
    cut_turns: list[int] = []
    for row in rows:
        try:
            example, cut = parse_row(row.value, row.number)
        except BadRowError as error:
            bad.append(BadRow(row.number, str(error)))
        else:
            examples.append(example)
            if cut:
                cut_turns.append(row.number)
    return ReadData(LoadedData(path, examples, bad, len(cut_turns)), cut_turns)


def measure_tokens(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> MeasuredData:
    """Rows as `tokenise` gives them to training, with their lengths in tokens before truncation."""
    whole = tokenise(examples, tokenizer, sys.maxsize)
    begin = Encoder(tokenizer).begin
    rows: list[TokenRow] = []
    cut_prompts: list[int] = []
    cut_completions: list[int] = []
    for row, line in zip(whole.rows, whole.lines, strict=True):
        prompt, completion = truncate(row.prompt, row.completion, max_length, begin)
        if len(prompt) < len(row.prompt):
            cut_prompts.append(line)
        if len(completion) < len(row.completion):
            cut_completions.append(line)
        rows.append(replace(row, prompt=prompt, completion=completion))
    by_line = {example.line: example for example in examples}
    return MeasuredData(
        unit="tokens",
        tokens=replace(whole, rows=rows, cut_prompts=len(cut_prompts), cut_completions=len(cut_completions)),
        examples=[by_line[line] for line in whole.lines],
        prompts=_lengths(row.prompt for row in whole.rows),
        completions=_lengths(row.completion for row in whole.rows),
        cut_prompts=cut_prompts,
        cut_completions=cut_completions,
    )


def measure_characters(examples: Sequence[Example]) -> MeasuredData:
    """Rows without a tokenizer: lengths in characters, nothing truncated, prompts grouped by their text."""
    rows: list[TokenRow] = []
    groups: dict[str, int] = {}
    for example in examples:
        key = prompt_key(example)
        # The split orders prompts by their tokens, so the placeholder must depend on the content.
        placeholder = list(sha256(key.encode()).digest())
        rows.append(TokenRow(placeholder, [0], example.label, groups.setdefault(key, len(groups))))
    lines = [example.line for example in examples]
    return MeasuredData(
        unit="characters",
        tokens=TokenisedData(rows, lines, bad=[], cut_prompts=0, cut_completions=0),
        examples=list(examples),
        prompts=_lengths(_text(example.prompt) for example in examples),
        completions=_lengths(_text(example.completion) for example in examples),
        cut_prompts=[],
        cut_completions=[],
    )


def prompt_key(example: Example) -> str:
    """A key that is equal for equal prompts."""
    return _key(example.prompt)


def completion_key(example: Example) -> str:
    """A key that is equal for equal completions."""
    return _key(example.completion)


def completion_text(example: Example) -> str:
    """The completion without its tool calls; empty when it has only calls."""
    if isinstance(example.completion, str):
        return example.completion
    return "\n".join(turn["content"] for turn in example.completion).strip()


def _key(side: str | tuple[Message, ...]) -> str:
    return json.dumps(
        side if isinstance(side, str) else [_without_ids(turn) for turn in side], sort_keys=True
    )


def _without_ids(turn: Message) -> Message:
    """The turn without the ids of its calls, which are random."""
    kept = {name: value for name, value in turn.items() if name not in {"tool_calls", "tool_call_id"}}
    if "tool_calls" in turn:
        kept["tool_calls"] = [call["function"] for call in turn["tool_calls"]]
    return kept


def _text(side: str | tuple[Message, ...]) -> str:
    if isinstance(side, str):
        return side
    parts = [(turn["content"], calls_as_text(turn.get("tool_calls", []))) for turn in side]
    return "\n".join(text for part in parts for text in part if text)


def _lengths(texts: Iterable[Sized]) -> Lengths:
    return np.array([len(text) for text in texts], dtype=np.int64)
