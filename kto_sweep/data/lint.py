"""Checks a data file without a GPU: what training would reject, and warnings about the rest.

file --> read_data --> measure_tokens | measure_characters --> lint --> counts, lengths, split, findings
"""

from dataclasses import dataclass

from kto_sweep.data import lint_findings as find
from kto_sweep.data.dataset import TrainingData, prepare_data
from kto_sweep.data.formats import describe_bad
from kto_sweep.data.lint_findings import LintFinding, lint_finding
from kto_sweep.data.lint_lengths import LengthReport, report_lengths
from kto_sweep.data.lint_rows import MeasuredData, ReadData, Unit
from kto_sweep.data.raw_rows import FORMATS_HINT
from kto_sweep.errors import DataError, Severity
from kto_sweep.trial import Trial


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

    def count(self, severity: Severity) -> int:
        """The number of findings of this severity."""
        return sum(finding.severity is severity for finding in self.findings)


def lint(read: ReadData, data: MeasuredData, *, max_length: int | None, eval_fraction: float) -> LintReport:
    """The report on rows already read and measured; its errors are what training would reject.

    `max_length` is that of `data`; None when it was measured in characters.
    """
    counts = _count(read, data)
    lengths = report_lengths(data)
    split, errors = _split(read, data, max_length, eval_fraction)
    findings = [
        *errors,
        *find.find_skipped_rows([*read.loaded.bad, *data.tokens.bad]),
        *find.find_duplicates(data.examples),
        *find.find_contradictions(data.examples),
        *find.find_contradictions_without_calls(data.examples),
        *find.find_imbalance(counts.desirable, counts.undesirable),
        *find.find_length_leak(lengths, counts.desirable, counts.undesirable),
        *find.find_later_turns(read),
        *find.find_neighbours(data),
    ]
    if max_length is not None:
        findings += find.find_truncated_rows(data, lengths, max_length)
        findings += find.find_contradictions_when_truncated(data, max_length)
    if split is not None and eval_fraction > 0:
        findings += find.find_small_split(split, eval_fraction)
    return LintReport(
        path=read.loaded.path,
        unit=data.unit,
        max_length=max_length,
        eval_fraction=eval_fraction,
        counts=counts,
        balance=balance(counts.desirable, counts.undesirable),
        lengths=lengths,
        split=None if split is None else _sides(split),
        findings=tuple(sorted(findings, key=lambda finding: list(Severity).index(finding.severity))),
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


def _count(read: ReadData, data: MeasuredData) -> Counts:
    rows = data.tokens.rows
    good, bad = ({row.group for row in rows if row.label is label} for label in (True, False))
    desirable = sum(row.label for row in rows)
    return Counts(
        rows=len(read.loaded.examples) + len(read.loaded.bad),
        usable=len(rows),
        desirable=desirable,
        undesirable=len(rows) - desirable,
        prompts=len(good | bad),
        prompts_with_both=len(good & bad),
    )


def _split(
    read: ReadData, data: MeasuredData, max_length: int | None, eval_fraction: float
) -> tuple[TrainingData | None, list[LintFinding]]:
    """The rows as training gets them, or the error that training would raise."""
    loaded = read.loaded
    if not loaded.examples:
        why = describe_bad(loaded.bad) if loaded.bad else "it has no rows"
        return None, [_error(f"no usable row: {why}", f"a row is {FORMATS_HINT}")]
    try:  # max_length is only for training's notes: the rows are already truncated
        split = prepare_data(loaded, data.tokens, eval_fraction=eval_fraction, max_length=max_length or 0)
    except DataError as error:
        return None, [_error(error.message.removeprefix(f"{loaded.path}: "), error.hint)]
    return split, []


def _error(what: str, hint: str) -> LintFinding:
    return lint_finding(Severity.ERROR, "cannot_train", 1, what, hint)


def _sides(split: TrainingData) -> Split:
    held_out = sum(row.label for row in split.eval)
    return Split(Side(*split.counts), Side(held_out, len(split.eval) - held_out))
