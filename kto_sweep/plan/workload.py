"""The tokens of a trial's steps, from row lengths after training's truncation and pairing.

Tokens are counted with the model's tokenizer if it is on this machine, else estimated from characters.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kto_sweep.data.dataset import TrainingData, prepare_data
from kto_sweep.data.formats import LoadedData, load_examples
from kto_sweep.data.lint_rows import CHARACTERS_PER_TOKEN, measure_characters
from kto_sweep.data.rows import Example, TokenRow
from kto_sweep.data.split import all_batches, total_steps
from kto_sweep.data.tokenise import TokenisedData, tokenise, truncate
from kto_sweep.models.tokenizer import find_tokenizer
from kto_sweep.plan.memory import StepLoad
from kto_sweep.trial import Trial

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_TOKENS = 5
"""Tokens that a chat template adds around each turn."""
CHECKED_STEPS = 2000
"""Number of a trial's steps that are searched for the largest one."""

Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class RowLengths:
    """Lengths in tokens of one side of the split."""

    prompts: Lengths
    completions: Lengths
    mismatched: Lengths

    def load(self, chosen: Sequence[int] | slice) -> StepLoad:
        """The tokens of a step on these rows."""
        completions = int(self.completions[chosen].sum())
        rows = len(self.completions[chosen])
        tokens = int(self.prompts[chosen].sum()) + completions - rows
        return StepLoad(tokens, completions, int(self.mismatched[chosen].sum()))

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Workload:
    """The rows of one data file for one tokenizer, max_length and eval_fraction."""

    train: RowLengths
    held_out: RowLengths
    exact: bool
    """False: tokens were estimated from characters."""

    def steps(self, trial: Trial) -> int:
        """Optimizer steps of the trial."""
        return total_steps(len(self.train), trial.batch_size, trial.epochs, trial.max_steps)

    def mean_load(self, trial: Trial) -> StepLoad:
        """The tokens of its average step."""
        rows = min(trial.batch_size, len(self.train))
        total, share = self.train.load(slice(None)), rows / len(self.train)
        return StepLoad(*(round(n * share) for n in (total.tokens, total.targets, total.mismatched)))

    def peak_load(self, trial: Trial) -> StepLoad:
        """The tokens of its largest step."""
        batches = all_batches(len(self.train), trial.batch_size, self.steps(trial), trial.seed)
        loads = (self.train.load(chosen) for _, chosen in islice(batches, CHECKED_STEPS))
        return max(loads, key=lambda load: load.tokens + load.mismatched)

    @cached_property
    def longest_row(self) -> StepLoad:
        """The tokens of a step with only the longest example."""
        rows = self.train
        at = int(np.argmax(rows.prompts + np.maximum(rows.completions, rows.mismatched)))
        return rows.load([at])


class WorkloadCache:
    """Workloads of trials; each data file is read and each row measured once."""

    def __init__(self, *, exact: bool = True) -> None:
        """`exact` False: no tokenizer is loaded."""
        self._exact = exact
        self._loaded: dict[str | tuple[str, ...], LoadedData] = {}
        self._tokenizers: dict[str, PreTrainedTokenizerBase | None] = {}
        self._uncut: dict[tuple[object, object], TokenisedData] = {}
        self._workloads: dict[tuple[object, ...], Workload] = {}

    def workload(self, trial: Trial) -> Workload:
        """The trial's workload. Raises DataError for data that cannot be trained on."""
        tokenizer = self._tokenizer(trial.base_model)
        # Models of one family share a tokenizer, so their rows are measured once.
        name = None if tokenizer is None else (tokenizer.vocab_size, str(tokenizer.chat_template))
        key = (trial.dataset, name, trial.max_length, trial.eval_fraction)
        if key not in self._workloads:
            tokens = self._tokens(trial.dataset, name, tokenizer)
            begin = None if tokenizer is None else tokenizer.bos_token_id
            cut = _cut(tokens, trial.max_length, begin if isinstance(begin, int) else None)
            loaded = self._data(trial.dataset)
            data = prepare_data(loaded, cut, eval_fraction=trial.eval_fraction, max_length=trial.max_length)
            self._workloads[key] = _workload_of(data, trial.max_length, exact=tokenizer is not None)
        return self._workloads[key]

    def _data(self, dataset: str | tuple[str, ...]) -> LoadedData:
        if dataset not in self._loaded:
            self._loaded[dataset] = load_examples(dataset)
        return self._loaded[dataset]

    def _tokens(
        self, dataset: str | tuple[str, ...], name: object, tokenizer: "PreTrainedTokenizerBase | None"
    ) -> TokenisedData:
        key = (dataset, name)
        if key not in self._uncut:
            examples = self._data(dataset).examples
            self._uncut[key] = (
                _estimate_tokens(examples)
                if tokenizer is None
                else tokenise(examples, tokenizer, sys.maxsize)
            )
        return self._uncut[key]

    def _tokenizer(self, model: str) -> "PreTrainedTokenizerBase | None":
        if model not in self._tokenizers:
            self._tokenizers[model] = find_tokenizer(model) if self._exact else None
        return self._tokenizers[model]


def _estimate_tokens(examples: Sequence[Example]) -> TokenisedData:
    """Rows of placeholder tokens, about as many as a tokenizer would give."""
    measured = measure_characters(examples)
    rows = [
        replace(
            row,
            prompt=_placeholder_tokens(row.prompt, int(prompt), example.prompt),
            completion=_placeholder_tokens([], int(completion), example.completion),
        )
        for row, prompt, completion, example in zip(
            measured.tokens.rows, measured.prompts, measured.completions, measured.examples, strict=True
        )
    ]
    return replace(measured.tokens, rows=rows)


def _placeholder_tokens(begin: list[int], characters: int, side: object) -> list[int]:
    turns = len(side) if isinstance(side, tuple) else 0
    tokens = max(1, round(characters / CHARACTERS_PER_TOKEN) + TEMPLATE_TOKENS * turns)
    return [*begin[:tokens], *[0] * (tokens - len(begin))]


def _cut(uncut: TokenisedData, max_length: int, begin: int | None) -> TokenisedData:
    rows = []
    for row in uncut.rows:
        prompt, completion = truncate(row.prompt, row.completion, max_length, begin)
        rows.append(replace(row, prompt=prompt, completion=completion))
    return replace(uncut, rows=rows)


def _workload_of(data: TrainingData, max_length: int, *, exact: bool) -> Workload:
    return Workload(
        train=_row_lengths(data.train, data.train_partners, max_length),
        held_out=_row_lengths(data.eval, data.eval_partners, max_length),
        exact=exact,
    )


def _row_lengths(rows: Sequence[TokenRow], partners: Sequence[int], max_length: int) -> RowLengths:
    """Lengths after pairing as in train/packed/pack.py: a mismatched completion is cut to what its prompt
    leaves."""
    prompts = np.array([len(row.prompt) for row in rows], dtype=np.int64)
    completions = np.array([len(row.completion) for row in rows], dtype=np.int64)
    partner = completions[np.asarray(partners, dtype=np.int64)]
    return RowLengths(prompts, completions, np.minimum(partner, np.maximum(1, max_length - prompts)))
