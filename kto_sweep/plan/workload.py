"""The tokens of a trial's steps, from row lengths after training's truncation and pairing.

Tokens are counted with the model's tokenizer if it is on this machine, else estimated from characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kto_sweep.data.dataset import DataSet, TrainingData, prepare_data
from kto_sweep.data.examples import DataSource
from kto_sweep.data.load import load_characters, load_tokens
from kto_sweep.data.split import all_batches, total_steps
from kto_sweep.data.table import Numbers, RowTable
from kto_sweep.data.tokenise import CHARACTERS_PER_TOKEN
from kto_sweep.models.model_checks import held_max_length
from kto_sweep.models.tokenizer import find_tokenizer
from kto_sweep.plan.memory import StepLoad
from kto_sweep.trial import Trial

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_TOKENS = 5
"""Tokens that a chat template adds around each turn."""
CHECKED_STEPS = 2000
"""Number of a trial's steps that are searched for the largest one."""


@dataclass(frozen=True)
class RowLengths:
    """Lengths in tokens of one side of the split."""

    prompts: Numbers
    completions: Numbers
    mismatched: Numbers

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
    """Workloads of trials; each data set is read and each row measured once."""

    def __init__(self, *, exact: bool = True, cache: Path | None = None) -> None:
        """`exact` False: no tokenizer is loaded. `cache`: where the tokens of large data sets are kept."""
        self._exact = exact
        self._cache = cache
        self._tokenizers: dict[str, PreTrainedTokenizerBase | None] = {}
        self._data: dict[tuple[DataSource, object], DataSet] = {}
        self._workloads: dict[tuple[object, ...], Workload] = {}

    def workload(self, trial: Trial) -> Workload:
        """The trial's workload. Raises DataError for data that cannot be trained on."""
        tokenizer = self._tokenizer(trial.base_model)
        # Models of one family share a tokenizer, so their rows are measured once.
        name = None if tokenizer is None else (tokenizer.vocab_size, str(tokenizer.chat_template))
        held_out = trial.eval_dataset
        max_length = held_max_length(trial.base_model, trial.max_length)
        key = (trial.dataset, held_out, name, max_length, trial.eval_fraction)
        if key not in self._workloads:
            data = prepare_data(
                self._data_set(trial.dataset, name, tokenizer),
                eval_fraction=trial.eval_fraction,
                max_length=max_length,
                held_out=None if held_out is None else self._data_set(held_out, name, tokenizer),
            )
            self._workloads[key] = workload_of(data, exact=tokenizer is not None)
        return self._workloads[key]

    def _data_set(
        self, source: DataSource, name: object, tokenizer: "PreTrainedTokenizerBase | None"
    ) -> DataSet:
        key = (source, name)
        if key not in self._data:
            self._data[key] = (
                _estimate_tokens(source)
                if tokenizer is None
                else load_tokens(source, tokenizer, cache=self._cache)
            )
        return self._data[key]

    def _tokenizer(self, model: str) -> "PreTrainedTokenizerBase | None":
        if model not in self._tokenizers:
            self._tokenizers[model] = find_tokenizer(model) if self._exact else None
        return self._tokenizers[model]


def _estimate_tokens(source: DataSource) -> DataSet:
    """Rows without token ids, of about the lengths that a tokenizer would give."""
    data = load_characters(source, turn_characters=round(TEMPLATE_TOKENS * CHARACTERS_PER_TOKEN))
    table = replace(
        data.table,
        prompt_lengths=_tokens(data.table.prompt_lengths),
        completion_lengths=_tokens(data.table.completion_lengths),
    )
    return replace(data, table=table)


def _tokens(characters: Numbers) -> Numbers:
    return np.maximum(1, np.rint(characters / CHARACTERS_PER_TOKEN)).astype(np.int64)


def workload_of(data: TrainingData, *, exact: bool) -> Workload:
    """The workload of rows as they are trained on; `exact`: their lengths are tokens of the model."""
    return Workload(
        train=_row_lengths(data.train, data.train_partners, data.max_length),
        held_out=_row_lengths(data.eval, data.eval_partners, data.max_length),
        exact=exact,
    )


def _row_lengths(table: RowTable, partners: Numbers, max_length: int) -> RowLengths:
    """Lengths after pairing as in train/packed/pack.py: a mismatched completion is cut to what its prompt
    leaves."""
    prompts, completions = table.prompt_lengths, table.completion_lengths
    mismatched = np.minimum(completions[partners], np.maximum(1, max_length - prompts))
    return RowLengths(prompts, completions, mismatched)
