"""Checks a data set without a GPU: what training would reject, and warnings about the rest.

rows --> load_tokens | load_characters --> lint --> counts, lengths, split, findings
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kto_sweep.data import lint_findings as find
from kto_sweep.data.dataset import DataSet, TrainingData, prepare_data
from kto_sweep.data.examples import Places
from kto_sweep.data.lint_findings import LintFinding, lint_finding
from kto_sweep.data.lint_lengths import LengthReport, report_lengths
from kto_sweep.data.shown_rows import RowInspector, ShownRow
from kto_sweep.data.table import RowTable
from kto_sweep.errors import DataError, Problem, Severity
from kto_sweep.trial import Trial

Unit = Literal["tokens", "characters"]


@dataclass(frozen=True)
class Counts:
    """Rows and prompts of a data file."""

    rows: int
    usable: int
    desirable: int
    """Of the usable rows, like all counts below."""
    undesirable: int
    prompts: int
    """Distinct prompts."""
    prompts_with_both: int
    """Prompts with desirable and undesirable answers."""


@dataclass(frozen=True)
class Balance:
    """Weights that balance the two labels (KTO, arXiv 2402.01306, section 4)."""

    ratio: float
    """Desirable rows for each undesirable one: rho with equal weights."""
    rho: float
    """The rho to use: the ratio itself (equal weights) if it is in [1, 4/3], else 1."""
    desirable_weight: float
    undesirable_weight: float
    """The two weights with this rho."""


@dataclass(frozen=True)
class Side:
    """One side of the split."""

    desirable: int
    undesirable: int


@dataclass(frozen=True)
class Split:
    """Rows to train on and held-out rows, split by prompt."""

    train: Side
    eval: Side


@dataclass(frozen=True)
class LintReport:
    """Counts, lengths, split and findings of a data file."""

    path: str
    unit: Unit
    """Unit of all lengths."""
    max_length: int | None
    """None: not checked, because there is no tokenizer."""
    eval_fraction: float
    counts: Counts
    balance: Balance | None
    """None when a label is missing."""
    lengths: LengthReport
    split: Split | None
    """None when training would reject the data."""
    findings: tuple[LintFinding, ...]
    """Errors first, then warnings, then notes."""
    places: Places
    """Where the lines of the findings are."""
    shown: tuple[ShownRow, ...] = ()
    """The first rows as the model gets them, if asked for."""

    def count(self, severity: Severity) -> int:
        """The number of findings of this severity."""
        return sum(finding.severity is severity for finding in self.findings)


def lint(
    data: DataSet,
    *,
    max_length: int | None,
    eval_fraction: float,
    stops: RowInspector | None = None,
    held_out: DataSet | None = None,
    shown: tuple[ShownRow, ...] = (),
    about_model: Sequence[Problem] = (),
) -> LintReport:
    """The report on rows already read and measured; its errors are what training would reject.

    `max_length` is None for rows that were measured in characters; `stops` None: unknown. `about_model`:
    problems of the model, as check_model gives them.
    """
    table = data.table
    lengths = report_lengths(table)
    desirable, undesirable = table.counts
    split, errors = _split(data, max_length, eval_fraction, held_out)
    findings = [
        *errors,
        *find.findings_of_model(about_model),
        *find.find_skipped_rows([*data.notes.bad, *data.tokens.bad]),
        *find.find_facts(data.notes),
        *find.find_unread(data.tokens.unread),
        *find.find_double_begin(table),
        *find.find_duplicates(table),
        *find.find_contradictions(table),
        *find.find_contradictions_without_calls(table),
        *find.find_imbalance(desirable, undesirable),
        *find.find_length_leak(lengths, desirable, undesirable),
        *find.find_neighbours(table),
    ]
    if stops is not None:
        findings += find.find_open_answers(table, stops.ends(table), data.tokens.ended, stops.end_text)
    if max_length is not None:
        cut = table.cut(max_length)
        findings += find.find_truncated_rows(table, cut, lengths, max_length)
        findings += find.find_contradictions_when_truncated(table, cut, max_length)
    if split is not None and held_out is None and eval_fraction > 0:
        findings += find.find_small_split(split, eval_fraction)
    if held_out is not None:
        findings += find.find_shared_prompts(table, held_out.table)
    return LintReport(
        path=data.path,
        unit="characters" if table.boundaries is None else "tokens",
        max_length=max_length,
        eval_fraction=eval_fraction,
        counts=_count(data),
        balance=balance(desirable, undesirable),
        lengths=lengths,
        split=None if split is None else Split(Side(*split.train.counts), Side(*split.eval.counts)),
        findings=tuple(sorted(findings, key=lambda finding: list(Severity).index(finding.severity))),
        places=data.notes.places,
        shown=shown,
    )


def balance(desirable: int, undesirable: int) -> Balance | None:
    """The rho to use and the resulting weights; None when a label is missing.

    >>> balance(300, 100)
    Balance(ratio=3.0, rho=1.0, desirable_weight=1.0, undesirable_weight=3.0)
    """
    if not desirable or not undesirable:
        return None
    ratio = desirable / undesirable
    rho = ratio if 1 <= ratio <= find.MAX_LABEL_RATIO else 1.0
    weights = Trial(dataset="", rho=rho).weights(desirable, undesirable)
    return Balance(ratio, rho, *weights)


def _count(data: DataSet) -> Counts:
    table: RowTable = data.table
    good, bad = (set(table.prompt_keys[side].tolist()) for side in (table.labels, ~table.labels))
    desirable, undesirable = table.counts
    return Counts(
        rows=data.notes.rows,
        usable=len(table),
        desirable=desirable,
        undesirable=undesirable,
        prompts=len(good | bad),
        prompts_with_both=len(good & bad),
    )


def _split(
    data: DataSet, max_length: int | None, eval_fraction: float, held_out: DataSet | None
) -> tuple[TrainingData | None, list[LintFinding]]:
    """The rows as training gets them, or the error that training would raise."""
    if data.notes.broken:
        return None, find.find_broken(data.notes.broken)
    try:
        return prepare_data(data, eval_fraction=eval_fraction, max_length=max_length, held_out=held_out), []
    except DataError as error:
        what = error.message.removeprefix(f"{data.path}: ")
        return None, [lint_finding(Severity.ERROR, "cannot_train", 1, what, error.hint)]
