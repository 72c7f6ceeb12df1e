"""From examples to token ids, for one tokenizer and max_length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kto_sweep.data.formats import BadRow
from kto_sweep.data.messages import BadRowError
from kto_sweep.data.rows import Example, TokenRow
from kto_sweep.data.template import Rendered, Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenisedData:
    """The rows of one data file as token ids."""

    rows: list[TokenRow]
    lines: list[int]
    """Line of each row in the file."""
    bad: list[BadRow]
    """Examples that the chat template rejects, or that have no tokens."""
    cut_prompts: int
    """Rows whose prompt was truncated at the start."""
    cut_completions: int
    """Rows whose completion was truncated at the end."""


def tokenise(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> TokenisedData:
    """Every example as token ids, at most `max_length` of prompt and completion together.

    Conversations use the chat template; text rows do not, and end with the end-of-text token.
    Rows with the same rendered prompt before truncation get the same group.
    """
    renderer = Renderer(tokenizer)
    kept: list[tuple[Example, Rendered]] = []
    bad: list[BadRow] = []
    for example in examples:
        try:
            kept.append((example, renderer.render(example)))
        except BadRowError as error:
            bad.append(BadRow(example.line, str(error)))

    encoder = Encoder(tokenizer)
    prompts = encoder.beginnings([text.prompt for _, text in kept], [text.from_template for _, text in kept])
    fulls = encoder.beginnings([text.full for _, text in kept], [text.from_template for _, text in kept])
    rows: list[TokenRow] = []
    lines: list[int] = []
    groups: dict[tuple[int, ...], int] = {}
    cut_prompts = cut_completions = 0
    for (example, text), prompt_ids, full_ids in zip(kept, prompts, fulls, strict=True):
        prompt, completion = split_ids(text, prompt_ids, full_ids, encoder)
        if not prompt or not completion:
            bad.append(BadRow(example.line, f"no tokens in its {'completion' if prompt else 'prompt'}"))
            continue
        short_prompt, short_completion = truncate(prompt, completion, max_length, encoder.begin)
        cut_prompts += len(short_prompt) < len(prompt)
        cut_completions += len(short_completion) < len(completion)
        group = groups.setdefault(tuple(prompt_ids), len(groups))
        rows.append(TokenRow(short_prompt, short_completion, example.label, group))
        lines.append(example.line)
    return TokenisedData(rows, lines, bad, cut_prompts, cut_completions)


class Encoder:
    """Text to token ids, with or without the special tokens that a tokenizer adds."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        eos = tokenizer.eos_token_id
        self.end: int | None = eos if isinstance(eos, int) else None
        """The end-of-text token, if there is one."""
        bos = tokenizer.bos_token_id
        self.begin: int | None = bos if isinstance(bos, int) else None
        """The beginning-of-text token, if there is one."""

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of the texts, without special tokens."""
        if not texts:
            return []
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def beginnings(self, texts: Sequence[str], from_template: Sequence[bool]) -> list[list[int]]:
        """Token ids of texts with the tokenizer's beginning-of-text token, unless a template wrote it."""
        plain = iter(self.plain([text for text, done in zip(texts, from_template, strict=True) if done]))
        with_begin = iter(
            self._begun([text for text, done in zip(texts, from_template, strict=True) if not done])
        )
        return [next(plain) if done else next(with_begin) for done in from_template]

    def _begun(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self._tokenizer(texts, verbose=False)
        # Some tokenizers also append an end token; here the text continues.
        return [list(ids[:-1] if ids and ids[-1] == self.end else ids) for ids in encoded["input_ids"]]

    def ended(self, ids: list[int]) -> list[int]:
        """The ids with one end-of-text token at the end."""
        return ids if self.end is None or ids[-1:] == [self.end] else [*ids, self.end]


def split_ids(
    text: Rendered, prompt_ids: list[int], full_ids: list[int], encoder: Encoder
) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the completion.

    Usually `full[len(prompt):]`. When the full text does not begin with the prompt's tokens:
    * the template opens an answer differently from how it renders one (`<think>` only when it asks for an
      answer): both are split where they diverge, so that together they are the template's text;
    * tokens merge across the boundary, or the template changes earlier turns once an answer follows: the
      prompt stays as the model sees it at inference, and the completion is encoded separately.
    """
    at = first_difference(prompt_ids, full_ids)
    if at == len(prompt_ids):
        prompt, completion = prompt_ids, full_ids[at:]
    elif text.body and at >= first_difference(encoder.plain([text.body])[0], prompt_ids) > 0:
        prompt, completion = prompt_ids[:at], full_ids[at:]
    else:
        prompt, completion = prompt_ids, encoder.plain([text.completion])[0]
    return prompt, completion if text.from_template or not completion else encoder.ended(completion)


def truncate(
    prompt: list[int], completion: list[int], max_length: int, begin: int | None
) -> tuple[list[int], list[int]]:
    """Prompt and completion of at most `max_length` tokens together, at least 2; neither is empty.

    A row that is too long loses the start of its prompt, down to half of max_length, then the end of its
    completion: the question is usually at the end of the prompt, and a truncated answer still teaches its
    start. (TRL truncates only the end, and drops rows whose prompt fills max_length.) A beginning-of-text
    token stays in front, because models fail without it.

    >>> truncate([1, 2, 3, 4, 5, 6], [7, 8], 6, None)
    ([3, 4, 5, 6], [7, 8])
    >>> truncate([1, 2, 3, 4, 5, 6], [7, 8, 9, 10], 6, begin=1)
    ([1, 5, 6], [7, 8, 9])
    """
    if len(prompt) + len(completion) <= max_length:
        return prompt, completion
    prompt_length = max(max_length - len(completion), max_length // 2)
    if len(prompt) > prompt_length:
        head = [begin] if begin is not None and prompt[0] == begin and prompt_length > 1 else []
        prompt = [*head, *prompt[len(prompt) - prompt_length + len(head) :]]
    return prompt, completion[: max_length - len(prompt)]


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix of two sequences."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))
