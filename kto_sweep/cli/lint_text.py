"""A lint report printed in a terminal."""

import shlex
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from kto_sweep.data.examples import Places
from kto_sweep.data.lint import Balance, LintReport, Split
from kto_sweep.data.lint_findings import MAX_LABEL_RATIO, LintFinding
from kto_sweep.data.lint_lengths import Bin, LengthReport
from kto_sweep.errors import Severity
from kto_sweep.models.presets import PRESETS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MAX_LINES = 5
"""Maximum number of lines, or groups of lines, that a finding lists."""

MAX_OF_A_KIND = 8
"""Maximum number of printed findings of one kind; a file can have a thousand reasons to skip rows."""

BAR_WIDTH = 50
"""Characters of the longest bar."""

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}


def print_report(out: "Console", report: LintReport, data: Sequence[str], model: str | None) -> None:
    """Print counts, lengths, histogram, findings and the next command; `data` and `model` as typed."""
    for line in _overview(report):
        out.print(line, markup=False, soft_wrap=True)
    if report.counts.usable:
        out.print(_length_title(report, model), markup=False, soft_wrap=True)
        out.print(_length_table(report.lengths))
        _print_histogram(out, report)
    for row in report.shown:
        for line in row.described():
            out.print(line, markup=False, soft_wrap=True)
        out.print()
    _print_findings(out, report)
    for line in _ending(report, data, model):
        out.print(line, markup=False, soft_wrap=True)


def _overview(report: LintReport) -> list[str]:
    counts = report.counts
    lines = [
        f"{report.path}: {counts.rows:,} row{'' if counts.rows == 1 else 's'}, {counts.usable:,} usable: "
        f"{counts.desirable:,} desirable, {counts.undesirable:,} undesirable"
    ]
    if counts.usable:
        lines.append(f"Prompts:  {counts.prompts:,} different, {counts.prompts_with_both:,} with both labels")
    if report.balance is not None:
        lines.append(f"Balance:  {_balance(report.balance)}")
    if report.split is not None:
        lines.append(f"Held out: {_split(report.split, report.eval_fraction)}")
    if report.lengths.auc is not None:
        strength = max(report.lengths.auc, 1 - report.lengths.auc)
        auc = f"{strength:.2f} (0.50 means no leak; eval/auc should beat it)"
        lines.append(f"Leak:     the completion's length alone has an AUC of {auc}")
    return [*lines, ""]


def _balance(balance: Balance) -> str:
    rows = f"{balance.ratio:.2f} desirable rows for each undesirable one"
    if balance.rho == balance.ratio:
        return f"{rows}; equal weights give rho {balance.rho:.2f}, which is fine (1 to {MAX_LABEL_RATIO:.2f})"
    good, bad = balance.desirable_weight, balance.undesirable_weight
    return f"{rows}; use rho: {balance.rho:g} (desirable_weight {good:.3g}, undesirable_weight {bad:.3g})"


def _split(split: Split, eval_fraction: float) -> str:
    held, train = split.eval, split.train
    return (
        f"{held.desirable:,} desirable and {held.undesirable:,} undesirable rows at eval_fraction "
        f"{eval_fraction:g}; {train.desirable:,} and {train.undesirable:,} to train on"
    )


def _length_title(report: LintReport, model: str | None) -> str:
    if model is None:
        return "Lengths in characters (--model NAME counts tokens, as training does, and checks max_length)"
    return f"Lengths in tokens of {model}, before truncation to max_length {report.max_length}"


def _length_table(lengths: LengthReport) -> "Table":
    from dataclasses import astuple

    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("min", "median", "90 %", "95 %", "99 %", "max"):
        table.add_column(name, justify="right")
    rows = {
        "prompt": lengths.prompt,
        "completion": lengths.completion,
        "  desirable": lengths.desirable,
        "  undesirable": lengths.undesirable,
        "prompt + completion": lengths.total,
    }
    for name, values in rows.items():
        if values is not None:
            table.add_row(name, *(f"{value:,}" for value in astuple(values)))
    return table


def _print_histogram(out: "Console", report: LintReport) -> None:
    """Print one bar per line; characters, not colours, distinguish the labels."""
    desirable, undesirable = "█░" if out.encoding.startswith("utf") else "#-"
    title = f"Rows by {report.unit} of prompt + completion ({desirable} desirable, {undesirable} undesirable)"
    out.print(title, markup=False)
    bins = report.lengths.histogram
    labels = [_range(item) for item in bins]
    largest = max(item.desirable + item.undesirable for item in bins)
    for label, item in zip(labels, bins, strict=True):
        rows = item.desirable + item.undesirable
        full = -(-BAR_WIDTH * rows // largest)  # rounded up, so that a single row is visible
        good = round(full * item.desirable / rows) if rows else 0
        bar = desirable * good + undesirable * (full - good)
        line = f"{label:>{max(map(len, labels))}} {rows:>{len(f'{largest:,}')},} {bar}"
        out.print(line.rstrip(), markup=False, soft_wrap=True)
    out.print()


def _range(item: Bin) -> str:
    if item.high is None:
        return f"{item.low:,} or more"
    return f"{item.low:,}" if item.low == item.high else f"{item.low:,}-{item.high:,}"


def _print_findings(out: "Console", report: LintReport) -> None:
    from rich.text import Text

    for code, group in groupby(report.findings, lambda finding: finding.code):
        of_a_kind = list(group)
        for finding in of_a_kind[:MAX_OF_A_KIND]:
            where = _lines(finding, report.places)
            level = (f"{finding.severity.capitalize():<8}", _STYLES[finding.severity])
            text = Text.assemble(level, f" {finding.what}{where}\n{'':9}{finding.hint}")
            out.print(text, soft_wrap=True)
        if len(of_a_kind) > MAX_OF_A_KIND:
            more = f"{'':9}{len(of_a_kind) - MAX_OF_A_KIND:,} more findings {code!r}: --json lists all"
            out.print(more, markup=False, soft_wrap=True)


def _lines(finding: LintFinding, places: Places) -> str:
    """` (lines 12, 17, ...)`; related rows as `12 and 340`."""
    if not finding.groups:
        return ""
    shown = [_few(list(map(places.name, group)), " and ") for group in finding.groups[: MAX_LINES + 1]]
    return f" (line{'' if len(finding.lines) == 1 else 's'} {_few(shown, ', ')})"


def _few(items: list[str], between: str) -> str:
    return between.join(items[:MAX_LINES]) + (f"{between}..." if len(items) > MAX_LINES else "")


def _ending(report: LintReport, data: Sequence[str], model: str | None) -> list[str]:
    counts = [(level, report.count(level)) for level in Severity]
    summary = ", ".join(f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts)
    again = f"kto-sweep lint {shlex.join(data)}"
    if report.count(Severity.ERROR):
        step = f"fix the errors above, then {again}"
    elif model is None:
        step = f"{again} --model NAME   (the model that you will train)"
    else:
        flag = "--model-size" if model in PRESETS else "--model"
        step = f"kto-sweep generate grid sweep.yaml {shlex.join(['--data', ','.join(data), flag, model])}"
    return [summary, f"Next: {step}"]
