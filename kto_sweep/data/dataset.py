"""The rows of one trial, ready to train on: checked, split, truncated, paired with mismatched completions."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kto_sweep.data.examples import DataNotes, describe_bad, listed_counts
from kto_sweep.data.split import partners, split_by_prompt
from kto_sweep.data.table import Numbers, RowTable
from kto_sweep.data.tokenise import TokenNotes
from kto_sweep.errors import DataError
from kto_sweep.text import counted

SEED = 0
"""Seed of the split and of the partners, the same for all trials: trials are compared on the same held-out
rows and share the reference values of the same pairs, so neither may depend on a trial's own seed."""


@dataclass(frozen=True, eq=False)
class DataSet:
    """The usable rows of a data set before truncation, and what was noticed on the way."""

    table: RowTable
    notes: DataNotes
    tokens: TokenNotes
    """Empty without a tokenizer."""

    @property
    def path(self) -> str:
        """The file or hub id, for messages."""
        return self.notes.path

    def require_rows(self) -> None:
        """Raise DataError if no row is usable."""
        if len(self.table):
            return
        if self.tokens.bad:
            bad = describe_bad([*self.notes.bad, *self.tokens.bad], self.notes.places)
            raise DataError(
                f"{self.path}: no usable row: {bad}",
                hint="use a model whose chat template accepts these conversations, or change their format",
            )
        raise self.notes.no_usable_row()


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Token rows to train on and to evaluate on."""

    path: str
    """The data file, for messages."""
    train: RowTable
    eval: RowTable
    """Held out, by prompt, or of a data set of their own; empty when eval_fraction is 0."""
    train_partners: Numbers
    """For each train row, the train row whose completion mismatches its prompt."""
    eval_partners: Numbers
    """The same for the held-out rows."""
    max_length: int
    """Tokens of prompt and completion to which rows are cut."""
    notes: tuple[str, ...]
    """Lines for the console log, printed once at the start."""
    eval_fingerprint: str = ""
    """See RowTable.fingerprint; empty without held-out rows."""

    @classmethod
    def paired(
        cls, path: str, train: RowTable, held_out: RowTable, max_length: int, notes: Iterable[str] = ()
    ) -> "TrainingData":
        """Rows, cut to `max_length` tokens, with their partners."""
        short = held_out.cut(max_length)
        return cls(
            path=path,
            train=train.cut(max_length),
            eval=short,
            train_partners=partners(train, SEED),
            eval_partners=partners(held_out, SEED) if len(held_out) else np.empty(0, dtype=np.int64),
            notes=tuple(notes),
            max_length=max_length,
            eval_fingerprint=held_out.fingerprint(None if short is held_out else max_length)
            if len(held_out)
            else "",
        )

    @property
    def counts(self) -> tuple[int, int]:
        """(desirable, undesirable) rows to train on."""
        return self.train.counts


def prepare_data(
    data: DataSet, *, eval_fraction: float, max_length: int | None, held_out: DataSet | None = None
) -> TrainingData:
    """The rows, truncated to max_length (None: not at all), split and paired.

    With `held_out` its rows are evaluated on, and eval_fraction is not used.
    Raises DataError when they cannot be trained on: no rows, one label only, too few prompts.
    """
    for part in (data, held_out):
        if part is not None:
            part.require_rows()
    _check_labels(data)
    _check_prompts(data, 0 if held_out is not None else eval_fraction)
    if held_out is None:
        train, evaluated = split_by_prompt(data.table, eval_fraction, SEED)
        if 0 in train.counts:
            missing = "undesirable" if train.labels[0] else "desirable"
            raise DataError(
                f"{data.path}: all {missing} rows are held out",
                hint=f"add {missing} rows with other prompts, or use a smaller eval_fraction",
            )
    else:
        _check_prompts(held_out, 0)
        train, evaluated = data.table, held_out.table
    notes = [*_notes(data, train, evaluated, held_out), *_understood(data, max_length)]
    if held_out is not None:
        notes += _understood(held_out, max_length)
    if len(evaluated) and 0 in evaluated.counts:
        notes.append("data: the held-out rows have one label only, so eval/auc and eval/margins are empty")
    return TrainingData.paired(
        data.path, train, evaluated, sys.maxsize if max_length is None else max_length, notes
    )


def _check_labels(data: DataSet) -> None:
    desirable, undesirable = data.table.counts
    if not desirable or not undesirable:
        label, missing = ("true", "false") if desirable else ("false", "true")
        raise DataError(
            f"{data.path}: all {len(data.table):,} usable rows have label {label}",
            hint=f"KTO needs both labels: add rows with label {missing}",
        )


def _check_prompts(data: DataSet, eval_fraction: float) -> None:
    prompts = data.table.prompts()
    if prompts < 2:
        raise DataError(
            f"{data.path}: all {len(data.table):,} rows have the same prompt",
            hint="KTO needs at least two prompts: its KL estimate pairs each answer with another prompt",
        )
    if eval_fraction > 0 and prompts < 4:  # two on each side, for mismatched pairs within each
        raise DataError(
            f"{data.path}: {prompts} distinct prompts are too few to hold out rows for evaluation",
            hint="use at least four distinct prompts, or a data set of held-out rows: eval_dataset",
        )


def _notes(data: DataSet, train: RowTable, evaluated: RowTable, held_out: DataSet | None) -> list[str]:
    """Counts, and the balance of the labels."""
    desirable, undesirable = data.table.counts
    of = "" if held_out is None else f" from {held_out.path}"
    notes = [
        f"data: {data.path}: {len(data.table):,} rows, {desirable:,} desirable, {undesirable:,} "
        f"undesirable, {data.table.prompts():,} prompts; {len(train):,} to train on, "
        f"{len(evaluated):,} held out{of}"
    ]
    if max(desirable, undesirable) > 4 / 3 * min(desirable, undesirable):
        ratio = max(desirable, undesirable) / min(desirable, undesirable)
        sides = ("desirable", "undesirable")
        more, fewer = sides if desirable > undesirable else sides[::-1]
        notes.append(
            f"data: {ratio:.1f} {more} rows for each {fewer} one; rho: 1 gives both labels the same weight"
        )
    if held_out is not None and (shared := shared_prompts(train, evaluated)):
        notes.append(
            f"data: {counted(shared, 'held-out row')} with a prompt that is also trained on: "
            "evaluations look better than they are"
        )
    return notes


def shared_prompts(train: RowTable, held_out: RowTable) -> int:
    """Held-out rows whose prompt is trained on."""
    return int(np.isin(held_out.prompt_keys, train.prompt_keys).sum())


def _understood(data: DataSet, max_length: int | None) -> list[str]:
    """What of a data set was skipped, changed, cut and not used."""
    lines = []
    bad = [*data.notes.bad, *data.tokens.bad]
    if bad:
        lines.append(f"skipped {counted(len(bad), 'row')}: {describe_bad(bad, data.notes.places)}")
    lines += data.notes.sentences()
    if data.tokens.unread:
        lines.append(f"the chat template does not read: {listed_counts(data.tokens.unread)}")
    if data.tokens.ended:
        lines.append(
            f"the chat template leaves {counted(data.tokens.ended, 'answer')} open; "
            "the end-of-text token is appended"
        )
    if max_length is not None:
        cut = data.table.cut(max_length)
        starts = int((cut.prompt_lengths < data.table.prompt_lengths).sum())
        ends = int((cut.completion_lengths < data.table.completion_lengths).sum())
        counts = [(starts, "prompts truncated at the start"), (ends, "completions truncated at the end")]
        if starts or ends:
            cuts = "; ".join(f"{n:,} {what}" for n, what in counts if n)
            lines.append(f"{cuts}, to max_length {max_length}")
    return [f"data: {line}" for line in lines]
