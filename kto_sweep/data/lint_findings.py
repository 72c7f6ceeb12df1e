"""Checks of a data file's usable rows, one function per check."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kto_sweep.data.dataset import TrainingData
from kto_sweep.data.formats import BadRow
from kto_sweep.data.lint_lengths import LengthReport
from kto_sweep.data.lint_rows import MeasuredData, ReadData, completion_key, completion_text, prompt_key
from kto_sweep.data.rows import Example
from kto_sweep.errors import Problem, Severity

LEAK_AUC = 0.7
"""The linter warns when length alone has this AUC or more, that is, ranks 7 in 10 pairs of rows correctly."""

MIN_HELD_OUT = 20
"""Held-out rows per label; with fewer, `eval/auc` of an untrained model varies by 0.1 or more."""

MAX_LABEL_RATIO = 4 / 3
"""Ratio of the labels above which training warns (KTO, arXiv 2402.01306, section 4)."""

Group = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LintFinding(Problem):
    """One problem of a data file's rows."""

    code: str
    """A name for programs."""
    count: int
    """Rows, copies or answers, as `what` says."""
    groups: tuple[Group, ...] = ()
    """Lines in the file; related ones, such as a row and its copies, in one group."""

    @property
    def lines(self) -> list[int]:
        """All lines, group after group."""
        return [line for group in self.groups for line in group]


def lint_finding(
    severity: Severity, code: str, count: int, what: str, hint: str, groups: tuple[Group, ...] = ()
) -> LintFinding:
    """A finding about a whole data file."""
    return LintFinding((), what, hint=hint, severity=severity, code=code, count=count, groups=groups)


def find_skipped_rows(bad: Iterable[BadRow]) -> list[LintFinding]:
    """Rows that training skips, one finding per reason, the most frequent first."""
    lines: dict[str, list[int]] = defaultdict(list)
    for row in bad:
        lines[row.why].append(row.line)
    hint = "training skips these rows: fix or delete them"
    return [
        finding
        for why, at in sorted(lines.items(), key=lambda item: -len(item[1]))
        for finding in _rows(Severity.WARNING, "left_out", at, f"skipped: {why}", hint)
    ]


def find_later_turns(read: ReadData) -> list[LintFinding]:
    """Rows with turns after the last assistant turn."""
    what = "with turns after the last assistant turn; training drops these turns"
    hint = "nothing to do if the label is about the last assistant turn"
    return _rows(Severity.NOTE, "later_turns", read.cut_turns, what, hint)


def find_duplicates(examples: Sequence[Example]) -> list[LintFinding]:
    """Rows equal to an earlier one, label included, ids of tool calls ignored."""
    groups = _equal_rows(examples, lambda row: (prompt_key(row), completion_key(row), row.label))
    count = sum(len(group) - 1 for group in groups)
    what = f"{count:,} {'copy of an earlier row' if count == 1 else 'copies of earlier rows'}, label included"
    hint = "delete the copies: each one counts as another row"
    return [lint_finding(Severity.WARNING, "duplicate", count, what, hint, groups)] if groups else []


def find_contradictions(examples: Sequence[Example]) -> list[LintFinding]:
    """Answers with both labels, ids of tool calls ignored."""
    hint = "decide which label is right and delete the other row"
    return _answers(Severity.WARNING, "contradictory", _contradictions(examples), "with both labels", hint)


def find_contradictions_when_truncated(data: MeasuredData, max_length: int) -> list[LintFinding]:
    """Answers with both labels only because max_length truncates their differences."""
    shortened = {*data.cut_prompts, *data.cut_completions}
    if not shortened:
        return []
    excluded = _contradictions(data.examples)
    row_at = dict(zip(data.tokens.lines, data.tokens.rows, strict=True))

    def key(example: Example) -> object:
        row = row_at[example.line]
        return tuple(row.prompt), tuple(row.completion)

    groups = [group for group in _both_labels(data.examples, key) if shortened.intersection(group)]
    what = f"with both labels after truncation to max_length {max_length}"
    hint = "a larger max_length keeps their differences"
    return _answers(Severity.WARNING, "contradictory_when_cut", _without(groups, excluded), what, hint)


def find_contradictions_without_calls(examples: Sequence[Example]) -> list[LintFinding]:
    """Answers with the same text under both labels that differ in their tool calls."""
    with_text = [row for row in examples if completion_text(row)]
    groups = _both_labels(with_text, lambda row: (prompt_key(row), completion_text(row)))
    return _answers(
        Severity.NOTE,
        "contradictory_without_calls",
        _without(groups, _contradictions(examples)),
        "with both labels that differ only in their tool calls",
        "nothing to do: tool calls are trained on; a trainer that drops tool_calls sees contradictions",
    )


def find_neighbours(data: MeasuredData) -> list[LintFinding]:
    """Rows directly after a row with the same prompt."""
    lines = [
        line
        for line, (row, after) in zip(data.tokens.lines[1:], pairwise(data.tokens.rows), strict=False)
        if row.group == after.group
    ]
    what = "directly after a row with the same prompt"
    hint = (
        "nothing to do: rows are shuffled, and a mismatched answer always has another prompt; trainers that "
        "mismatch neighbouring rows, such as TRL, compute a wrong KL from this order"
    )
    return _rows(Severity.NOTE, "same_prompt_neighbours", lines, what, hint)


def find_imbalance(desirable: int, undesirable: int) -> list[LintFinding]:
    """One label that outnumbers the other; training notes it from the same ratio."""
    more, fewer = max(desirable, undesirable), min(desirable, undesirable)
    if fewer == 0 or more <= MAX_LABEL_RATIO * fewer:
        return []
    sides = ("desirable", "undesirable") if desirable > undesirable else ("undesirable", "desirable")
    ratio = more / fewer
    what = f"{ratio:.2g} {sides[0]} rows for each {sides[1]} one"
    hint = f"rho: 1 gives both labels the same weight (or {sides[1]}_weight: {ratio:.3g})"
    return [lint_finding(Severity.WARNING, "imbalance", more - fewer, what, hint)]


def find_length_leak(lengths: LengthReport, desirable: int, undesirable: int) -> list[LintFinding]:
    """A completion length that predicts the label better than chance with this number of rows."""
    if lengths.auc is None:
        return []
    # Standard deviation of the AUC (Mann-Whitney's U / nm) when length and label are independent.
    chance = math.sqrt((desirable + undesirable + 1) / (12 * desirable * undesirable))
    strength = max(lengths.auc, 1 - lengths.auc)
    if strength < max(LEAK_AUC, 0.5 + 3 * chance):
        return []
    longer, shorter = ("desirable", "undesirable") if lengths.auc > 0.5 else ("undesirable", "desirable")
    what = f"length alone predicts the label: AUC {strength:.2f}, {longer} completions are longer"
    learned = "more" if longer == "desirable" else "less"
    hint = (
        f"add short {longer} and long {shorter} completions, or the model may only learn to write {learned}"
    )
    return [lint_finding(Severity.WARNING, "length_leak", desirable + undesirable, what, hint)]


def find_truncated_rows(data: MeasuredData, lengths: LengthReport, max_length: int) -> list[LintFinding]:
    """Rows that max_length truncates."""
    if lengths.total is None:
        return []
    filled = [line for line, n in zip(data.tokens.lines, data.prompts, strict=True) if n >= max_length]
    others = sorted(set(data.cut_prompts).difference(filled))
    hint = f"max_length: {lengths.total.max} fits every row"
    if max_length < lengths.total.p99 < lengths.total.max:
        hint += f", {lengths.total.p99} fits 99 of 100"
    fills = f"with a prompt of max_length {max_length} or more; only its end is kept, at most half of that"
    begin = f"with a prompt truncated at the start to max_length {max_length}"
    end = f"with a completion truncated at the end to max_length {max_length}"
    return [
        *_rows(Severity.WARNING, "prompt_fills_max_length", filled, fills, hint),
        *_rows(Severity.WARNING, "prompt_cut", others, begin, hint),
        *_rows(Severity.WARNING, "completion_cut", data.cut_completions, end, hint),
    ]


def find_small_split(split: TrainingData, eval_fraction: float) -> list[LintFinding]:
    """Held-out rows that are too few, or of one label only, for meaningful eval metrics."""
    desirable = sum(row.label for row in split.eval)
    undesirable = len(split.eval) - desirable
    fewest = min(desirable, undesirable)
    if fewest >= MIN_HELD_OUT:
        return []
    usable = [split.counts[0] + desirable, split.counts[1] + undesirable]
    needed = math.ceil(20 * MIN_HELD_OUT / min(usable)) / 20  # in steps of 0.05
    hint = f"eval_fraction: {needed:g}" if eval_fraction < needed <= 0.5 else "add rows with other prompts"
    if fewest == 0:
        one = "desirable" if desirable else "undesirable"
        what = f"all held-out rows are {one}: eval/auc and eval/margins are empty"
        return [lint_finding(Severity.WARNING, "held_out_one_label", len(split.eval), what, hint)]
    what = (
        f"only {desirable} desirable and {undesirable} undesirable rows are held out: eval metrics are noisy"
    )
    return [lint_finding(Severity.WARNING, "few_held_out", len(split.eval), what, hint)]


def _equal_rows(rows: Iterable[Example], key: Callable[[Example], object]) -> tuple[Group, ...]:
    """Lines of rows that share a key with others, by key, in file order."""
    lines: dict[object, list[int]] = defaultdict(list)
    for row in rows:
        lines[key(row)].append(row.line)
    return tuple(tuple(group) for group in lines.values() if len(group) > 1)


def _both_labels(rows: Sequence[Example], key: Callable[[Example], object]) -> tuple[Group, ...]:
    """The groups of equal rows that have both labels."""
    label = {row.line: row.label for row in rows}
    return tuple(group for group in _equal_rows(rows, key) if len({label[line] for line in group}) == 2)


def _contradictions(examples: Sequence[Example]) -> tuple[Group, ...]:
    return _both_labels(examples, lambda row: (prompt_key(row), completion_key(row)))


def _without(groups: Iterable[Group], excluded: Iterable[Group]) -> tuple[Group, ...]:
    """The groups that are not part of an excluded one."""
    lines = {line for group in excluded for line in group}
    return tuple(group for group in groups if not lines.issuperset(group))


def _rows(severity: Severity, code: str, lines: Sequence[int], what: str, hint: str) -> list[LintFinding]:
    """A finding about single rows; none when there are none."""
    if not lines:
        return []
    text = f"{len(lines):,} row{'' if len(lines) == 1 else 's'} {what}"
    return [lint_finding(severity, code, len(lines), text, hint, tuple((line,) for line in lines))]


def _answers(
    severity: Severity, code: str, groups: tuple[Group, ...], what: str, hint: str
) -> list[LintFinding]:
    """A finding about answers of several rows; none when there are none."""
    if not groups:
        return []
    text = f"{len(groups):,} answer{'' if len(groups) == 1 else 's'} {what}"
    return [lint_finding(severity, code, len(groups), text, hint, groups)]
