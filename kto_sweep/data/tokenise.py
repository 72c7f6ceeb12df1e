"""From examples to a table of token ids, for one tokenizer; one chunk of rows in memory at a time."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from kto_sweep.data.examples import BadRow, Progress
from kto_sweep.data.keys import completion_key, prompt_key, text_key
from kto_sweep.data.messages import BadRowError, calls_as_text
from kto_sweep.data.rows import Example, Message
from kto_sweep.data.table import Numbers, RowTable
from kto_sweep.data.template import Rendered, Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 1024
"""Examples that are rendered and encoded at once."""
IN_MEMORY = 2**24
"""Tokens kept in memory (64 MiB); those of a larger data set are mapped from a file."""

CHARACTERS_PER_TOKEN = 3.3
"""Average for English with some code or JSON, and vocabularies of 50,000 tokens or more."""


@dataclass
class TokenNotes:
    """What was noticed while the examples were encoded."""

    bad: list[BadRow] = field(default_factory=list)
    """Examples that the chat template rejects, or that have no tokens."""
    unread: Counter[str] = field(default_factory=Counter)
    """Rows with something that the chat template does not read, by its name."""
    ended: int = 0
    """Rows whose answer the chat template leaves open: the end-of-text token is appended."""


@dataclass(frozen=True)
class TokenisedData:
    """The rows of one data set before truncation."""

    table: RowTable
    notes: TokenNotes


def tokenise(
    examples: Iterable[Example],
    tokenizer: "PreTrainedTokenizerBase",
    progress: Progress = lambda _: None,
    file: Path | None = None,
) -> TokenisedData:
    """Every example as token ids, not truncated.

    Conversations use the chat template; text rows do not, and end with the end-of-text token. More than
    IN_MEMORY tokens are written to `file`, by default a temporary one without a name, and mapped from it.
    """
    renderer, encoder = Renderer(tokenizer), Encoder(tokenizer)
    notes = TokenNotes(unread=renderer.unread)
    builder = _TableBuilder(encoder.begin, file)
    done = 0
    waiting: Future[list[tuple[list[int], list[int]]]] | None = None
    kept: list[tuple[Example, Rendered]] = []
    # The next chunk is rendered, in Python, while the tokenizer's threads encode this one.
    with ThreadPoolExecutor(1, "tokenise") as pool:
        for chunk in _chunks(examples):
            rendered = _render(chunk, renderer, notes)
            encoding = pool.submit(encoder.encode, [text for _, text in rendered], notes)
            if waiting is not None:
                builder.add(kept, waiting.result(), notes)
            waiting, kept = encoding, rendered
            done += len(chunk)
            progress(done)
        if waiting is not None:
            builder.add(kept, waiting.result(), notes)
    notes.bad.sort(key=lambda row: row.line)
    return TokenisedData(builder.table(), notes)


def measure(examples: Iterable[Example], turn_characters: int = 0) -> RowTable:
    """The rows without token ids: lengths in characters, `turn_characters` more for each turn."""
    builder = _TableBuilder(None, None)
    for example in examples:
        sides = (example.prompt, example.completion)
        builder.add_row(example, *(_characters(side, turn_characters) for side in sides))
    return builder.table()


def _chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    iterator = iter(examples)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _render(
    examples: Iterable[Example], renderer: Renderer, notes: TokenNotes
) -> list[tuple[Example, Rendered]]:
    rendered = []
    for example in examples:
        try:
            rendered.append((example, renderer.render(example)))
        except BadRowError as error:
            notes.bad.append(BadRow(example.line, str(error)))
    return rendered


def _characters(side: str | tuple[Message, ...], turn_characters: int) -> int:
    if isinstance(side, str):
        return len(side)
    parts = [(turn["content"], calls_as_text(turn.get("tool_calls", []))) for turn in side]
    text = "\n".join(text for part in parts for text in part if text)
    return len(text) + turn_characters * len(side)


class _TableBuilder:
    """Collects rows into columns, and their tokens into memory or a file."""

    def __init__(self, begin: int | None, file: Path | None) -> None:
        self._begin = begin
        self._file = file
        self._columns: list[list[Numbers]] = []
        self._rows: list[tuple[int, ...]] = []
        """Of the last chunk: line, label, prompt, completion and text key, both lengths."""
        self._ids: list[np.ndarray] = []
        self._tokens = 0
        self._out: IO[bytes] | None = None

    def add_row(self, example: Example, prompt: int, completion: int) -> None:
        """Add a row of these lengths."""
        keys = (prompt_key(example), completion_key(example), text_key(example))
        self._rows.append((example.line, example.label, *keys, prompt, completion))
        if len(self._rows) == CHUNK:
            self._close_chunk()

    def add(
        self,
        rendered: Sequence[tuple[Example, Rendered]],
        encoded: Sequence[tuple[list[int], list[int]]],
        notes: TokenNotes,
    ) -> None:
        """Add one chunk's rows; those without tokens are bad."""
        ids: list[int] = []
        for (example, _), (prompt, completion) in zip(rendered, encoded, strict=True):
            if not prompt or not completion:
                missing = "completion" if prompt else "prompt"
                notes.bad.append(BadRow(example.line, f"no tokens in its {missing}"))
                continue
            self.add_row(example, len(prompt), len(completion))
            ids += prompt
            ids += completion
        self._put(np.array(ids, dtype=np.int32))

    def _put(self, ids: np.ndarray) -> None:
        self._tokens += len(ids)
        if self._out is None and self._tokens > IN_MEMORY:
            # Without a name: it vanishes with the process, however that ends.
            self._out = tempfile.TemporaryFile() if self._file is None else self._file.open("w+b")  # noqa: SIM115
            for earlier in self._ids:
                self._out.write(earlier.tobytes())
            self._ids = []
        if self._out is None:
            self._ids.append(ids)
        else:
            self._out.write(ids.tobytes())

    def _close_chunk(self) -> None:
        if self._rows:
            self._columns.append(list(np.array(self._rows, dtype=np.int64).T))
            self._rows = []

    def table(self) -> RowTable:
        """All rows."""
        self._close_chunk()
        empty = [[np.empty(0, dtype=np.int64)] for _ in range(7)]
        columns = [
            np.concatenate(parts) for parts in (zip(*self._columns, strict=True) if self._columns else empty)
        ]
        lines, labels, prompts, completions, texts, prompt_lengths, completion_lengths = columns
        has_tokens = self._tokens > 0
        return RowTable(
            lines,
            labels.astype(bool),
            prompts,
            completions,
            texts,
            prompt_lengths,
            completion_lengths,
            ids=self._all_ids() if has_tokens else None,
            boundaries=np.cumsum(prompt_lengths + completion_lengths) - completion_lengths
            if has_tokens
            else None,
            begin=self._begin,
        )

    def _all_ids(self) -> np.ndarray:
        if self._out is not None:
            with self._out as out:  # the mapping keeps the file open
                out.flush()
                return np.memmap(out, dtype=np.int32, mode="r")
        return np.concatenate(self._ids) if self._ids else np.empty(0, dtype=np.int32)


class Encoder:
    """Text to token ids, with or without the special tokens that a tokenizer adds."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:  # a tokenizer.json may switch both on
            self._backend.no_truncation()
            self._backend.no_padding()
        self._divisible = _is_divisible(self._backend)
        eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
        self.end: int | None = eos if isinstance(eos, int) else None
        """The end-of-text token, if there is one."""
        self.begin: int | None = bos if isinstance(bos, int) else None
        """The beginning-of-text token, if there is one."""
        # Some tokenizers append an end token; a prompt continues.
        self._appends_end = self._encode(["a"], add_special_tokens=True)[0][-1:] == [self.end]
        added = tokenizer.added_tokens_decoder
        self._special = {token for token, about in added.items() if about.special}
        self._special.update(token for token in tokenizer.all_special_ids if token is not None)

    def encode(self, texts: Sequence[Rendered], notes: TokenNotes) -> list[tuple[list[int], list[int]]]:
        """Token ids of each text's prompt and completion."""
        prompts = self._beginnings(texts, [text.prompt for text in texts])
        completions = self._plain([text.completion for text in texts])
        rows = list(zip(prompts, completions, strict=True))
        # Where the text does not begin with the prompt, or its tokens depend on what stands before them, the
        # whole text's tokens decide.
        whole = [at for at, text in enumerate(texts) if not self._is_apart(text)]
        chosen = [texts[at] for at in whole]
        fulls = self._beginnings(chosen, [text.full for text in chosen])
        bodies = self._plain([text.body for text in chosen])
        for at, full, body in zip(whole, fulls, bodies, strict=True):
            rows[at] = _split(*rows[at], full, body)
        return [
            (prompt, self._ended(completion, text, notes))
            for (prompt, completion), text in zip(rows, texts, strict=True)
        ]

    def _is_apart(self, text: Rendered) -> bool:
        """Whether the tokens of the whole text are those of prompt and completion, or one crosses the cut."""
        if text.body or not self._divisible:
            return False
        # Digits and signs are grouped with those before them ("12" + "34"); letters and spaces are not.
        return text.completion[:1].isalpha() or text.completion[:1].isspace()

    def _ended(self, completion: list[int], text: Rendered, notes: TokenNotes) -> list[int]:
        """The completion with a token at its end at which the model can stop."""
        if self.end is None or not completion:
            return completion
        if not text.from_template:
            return completion if completion[-1] == self.end else [*completion, self.end]
        # Templates often write a line break after the token that ends a turn.
        if any(token in self._special for token in completion[-3:]):
            return completion
        notes.ended += 1
        return [*completion, self.end]

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of the texts, without special tokens."""
        return self._encode(texts, add_special_tokens=False)

    def _encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        if self._backend is not None:  # without the attention masks and offsets of transformers' call
            encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
            return [encoding.ids for encoding in encoded]
        ids = self._tokenizer(list(texts), add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return [list(row) for row in ids]

    def _beginnings(self, texts: Sequence[Rendered], parts: Sequence[str]) -> list[list[int]]:
        """Token ids of a part of each text that starts where the text does, with the tokenizer's
        beginning-of-text token unless a template wrote it."""
        by_template = [text.from_template for text in texts]
        plain = iter(self._plain([part for part, done in zip(parts, by_template, strict=True) if done]))
        begun = iter(self._begun([part for part, done in zip(parts, by_template, strict=True) if not done]))
        return [next(plain) if done else next(begun) for done in by_template]

    def _begun(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._encode(texts, add_special_tokens=True)
        return [ids[:-1] for ids in encoded] if self._appends_end else encoded


def _is_divisible(backend: Any) -> bool:
    """Whether the tokens of a text's end are those of the end alone, unless a token crosses the cut.

    True for byte-level BPE, which merges neighbours only and marks no word starts: most models since GPT-2.
    Their texts are encoded once, not once with and once without the completion.
    """
    if backend is None:
        return False
    described = json.loads(backend.to_str())
    steps = described.get("pre_tokenizer") or {}
    kinds = steps.get("pretokenizers", [steps])
    byte_level = [step for step in kinds if step.get("type") == "ByteLevel"]
    return (
        described["model"]["type"] == "BPE"
        and not described["model"].get("continuing_subword_prefix")
        and (described.get("normalizer") or {}).get("type") in (None, "NFC")
        and bool(byte_level)
        and not any(step.get("add_prefix_space") for step in byte_level)
        and all(step.get("type") in ("ByteLevel", "Split", "Digits") for step in kinds)
    )


def _split(
    prompt: list[int], completion: list[int], full: list[int], body: list[int]
) -> tuple[list[int], list[int]]:
    """Token ids of prompt and completion, given those of each alone, of the whole text and of its body.

    Usually the whole text begins with the prompt's tokens. Otherwise:
    * the template opens an answer differently from how it renders one (`<think>` only when it asks for an
      answer): both are split where they diverge, so that together they are the template's text;
    * tokens merge across the boundary, or the template changes earlier turns once an answer follows: the
      prompt stays as the model sees it at inference, and the completion is encoded separately.
    """
    at = first_difference(prompt, full)
    if at == len(prompt):
        return prompt, full[at:]
    if body and at >= first_difference(body, prompt) > 0:
        return prompt[:at], full[at:]
    return prompt, completion


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix of two sequences."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))
