"""Checks of a data file's usable rows, one function per check."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kto_sweep.data import formats
from kto_sweep.data.dataset import TrainingData, shared_prompts
from kto_sweep.data.examples import BadRow, DataNotes
from kto_sweep.data.lint_lengths import LengthReport
from kto_sweep.data.table import Flags, Numbers, RowTable, equal_rows
from kto_sweep.errors import DataError, Problem, Severity
from kto_sweep.text import counted

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


def findings_of_model(problems: Iterable[Problem]) -> list[LintFinding]:
    """The problems of the base model."""
    return [
        lint_finding(problem.severity, "model", 1, f"{'.'.join(problem.path)}: {problem.what}", problem.hint)
        for problem in problems
    ]


def find_broken(broken: Sequence[tuple[int, DataError]]) -> list[LintFinding]:
    """Lines that are not JSON, one finding per reason, in order of the first line."""
    lines: dict[str, list[int]] = defaultdict(list)
    hints: dict[str, str] = {}
    for line, error in broken:
        why = error.message.partition(": ")[2].partition(" (column ")[0]  # without file, line and column
        lines[why].append(line)
        hints.setdefault(why, error.hint)
    return [
        lint_finding(Severity.ERROR, "broken", len(at), why, hints[why], tuple((line,) for line in at))
        for why, at in lines.items()
    ]


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


_FACTS = {
    formats.LATER_TURNS: (
        "later_turns",
        Severity.NOTE,
        "nothing to do if the label is about the last assistant turn",
    ),
    formats.SEVERAL_TURNS: (
        "several_turns",
        Severity.NOTE,
        "nothing to do if the label is about the last assistant turn",
    ),
    formats.REPEATED_PROMPT: ("repeated_prompt", Severity.NOTE, "nothing to do"),
    formats.PROMPT_IN_TEXT: (
        "prompt_in_completion",
        Severity.WARNING,
        "delete the prompt from the completion, unless the model should repeat it",
    ),
}
"""Code, severity and hint of what reading changed or noticed."""


def find_facts(notes: DataNotes) -> list[LintFinding]:
    """How rows were understood, what was changed in them, and which columns are not used."""
    findings = []
    for form, n in notes.forms.most_common():
        what = f"{counted(n, 'row')} understood as {form}"
        findings.append(
            lint_finding(Severity.NOTE, "form", n, what, "--show 3 prints rows as the model gets them")
        )
    for fact, lines in notes.facts.items():
        code, severity, hint = _FACTS[fact]
        findings += _rows(severity, code, lines, fact, hint)
    return findings + [
        lint_finding(
            Severity.NOTE,
            "not_used",
            n,
            f"column {name} is not used ({counted(n, 'row')})",
            "nothing to do, unless the answer depends on it",
        )
        for name, n in notes.ignored.most_common()
    ]


def find_unread(unread: Counter[str]) -> list[LintFinding]:
    """What the model's chat template does not read."""
    return [
        lint_finding(
            Severity.WARNING,
            "not_read",
            n,
            f"the model's chat template does not read {name} ({counted(n, 'row')})",
            "use a model whose template reads it, or write it into a turn's content",
        )
        for name, n in unread.most_common()
    ]


def find_open_answers(table: RowTable, ends: Flags, appended: int, end: str | None) -> list[LintFinding]:
    """Answers without a token at which the model stops; `ends` has the others."""
    findings = []
    if appended:
        what = f"the chat template leaves {counted(appended, 'answer')} open; {end} is appended"
        findings.append(lint_finding(Severity.NOTE, "end_appended", appended, what, "nothing to do"))
    lines = table.lines[~ends]
    what = "whose completion does not end with a token at which the model stops"
    hint = "set eos_token in the model's generation_config.json to the token that ends its turns"
    return [*findings, *_rows(Severity.WARNING, "no_stop", lines, what, hint)]


def find_double_begin(table: RowTable) -> list[LintFinding]:
    """Prompts that begin with two beginning-of-text tokens."""
    if table.begin is None or table.ids is None or table.boundaries is None:
        return []
    starts = table.boundaries - table.prompt_lengths
    double = (table.ids[starts] == table.begin) & (table.prompt_lengths > 1)
    double[double] = table.ids[starts[double] + 1] == table.begin
    what = "whose prompt begins with two beginning-of-text tokens"
    hint = "delete the token from the text: the tokenizer or the chat template writes it"
    return _rows(Severity.WARNING, "double_begin", table.lines[double], what, hint)


def find_duplicates(table: RowTable) -> list[LintFinding]:
    """Rows equal to an earlier one, label included, ids of tool calls and white space in prompts ignored."""
    groups = equal_rows(table.prompt_keys, table.completion_keys, table.labels.astype(np.int64))
    count = sum(len(group) - 1 for group in groups)
    what = f"{count:,} {'copy of an earlier row' if count == 1 else 'copies of earlier rows'}, label included"
    hint = "delete the copies: each one counts as another row"
    if not groups:
        return []
    return [lint_finding(Severity.WARNING, "duplicate", count, what, hint, _lines_of(table, groups))]


def find_contradictions(table: RowTable) -> list[LintFinding]:
    """Answers with both labels, ids of tool calls ignored."""
    hint = "decide which label is right and delete the other row"
    groups = _lines_of(table, _contradictions(table))
    return _answers(Severity.WARNING, "contradictory", groups, "with both labels", hint)


def find_contradictions_when_truncated(table: RowTable, cut: RowTable, max_length: int) -> list[LintFinding]:
    """Answers with both labels only because max_length truncates their differences."""
    shortened = (cut.prompt_lengths < table.prompt_lengths) | (
        cut.completion_lengths < table.completion_lengths
    )
    if not shortened.any():
        return []
    groups = [group for group in _both_labels(table, _content(cut)) if shortened[group].any()]
    what = f"with both labels after truncation to max_length {max_length}"
    hint = "a larger max_length keeps their differences"
    groups = _without(groups, _contradictions(table))
    return _answers(Severity.WARNING, "contradictory_when_cut", _lines_of(table, groups), what, hint)


def _content(cut: RowTable) -> Numbers:
    """A hash of each row's tokens."""
    digests = [
        hashlib.blake2b(
            cut.prompt_ids(at).tobytes() + b"|" + cut.completion_ids(at).tobytes(), digest_size=8
        ).digest()
        for at in range(len(cut))
    ]
    return np.frombuffer(b"".join(digests), dtype=np.int64)


def find_contradictions_without_calls(table: RowTable) -> list[LintFinding]:
    """Answers with the same text under both labels that differ in their tool calls."""
    groups = [
        group
        for group in _both_labels(table, table.prompt_keys, table.text_keys)
        if table.text_keys[group[0]]
    ]
    groups = _without(groups, _contradictions(table))
    return _answers(
        Severity.NOTE,
        "contradictory_without_calls",
        _lines_of(table, groups),
        "with both labels that differ only in their tool calls",
        "nothing to do: tool calls are trained on; a trainer that drops tool_calls sees contradictions",
    )


def find_neighbours(table: RowTable) -> list[LintFinding]:
    """Rows directly after a row with the same prompt."""
    same = table.prompt_keys[1:] == table.prompt_keys[:-1]
    what = "directly after a row with the same prompt"
    hint = (
        "nothing to do: rows are shuffled, and a mismatched answer always has another prompt; trainers that "
        "mismatch neighbouring rows, such as TRL, compute a wrong KL from this order"
    )
    return _rows(Severity.NOTE, "same_prompt_neighbours", table.lines[1:][same], what, hint)


def find_shared_prompts(train: RowTable, held_out: RowTable) -> list[LintFinding]:
    """Held-out rows of a data set of their own whose prompts are trained on."""
    shared = shared_prompts(train, held_out)
    if not shared:
        return []
    what = f"{counted(shared, 'held-out row')} with a prompt that is also trained on"
    hint = "delete them from one of the two: evaluations look better than they are"
    return [lint_finding(Severity.WARNING, "held_out_prompt_trained", shared, what, hint)]


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


def find_truncated_rows(
    table: RowTable, cut: RowTable, lengths: LengthReport, max_length: int
) -> list[LintFinding]:
    """Rows that max_length truncates."""
    if lengths.total is None:
        return []
    fills = table.prompt_lengths >= max_length
    starts = (cut.prompt_lengths < table.prompt_lengths) & ~fills
    ends = cut.completion_lengths < table.completion_lengths
    hint = f"max_length: {lengths.total.max} fits every row"
    if max_length < lengths.total.p99 < lengths.total.max:
        hint += f", {lengths.total.p99} fits 99 of 100"
    findings = (
        (
            "prompt_fills_max_length",
            fills,
            f"with a prompt of max_length {max_length} or more; only its end is kept, at most half of that",
        ),
        ("prompt_cut", starts, f"with a prompt truncated at the start to max_length {max_length}"),
        ("completion_cut", ends, f"with a completion truncated at the end to max_length {max_length}"),
    )
    return [
        finding
        for code, which, what in findings
        for finding in _rows(Severity.WARNING, code, table.lines[which], what, hint)
    ]


def find_small_split(split: TrainingData, eval_fraction: float) -> list[LintFinding]:
    """Held-out rows that are too few, or of one label only, for meaningful eval metrics."""
    desirable, undesirable = split.eval.counts
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


def _both_labels(table: RowTable, *keys: Numbers) -> list[Numbers]:
    """The groups of equal rows that have both labels."""
    return [group for group in equal_rows(*keys) if len(set(table.labels[group].tolist())) == 2]


def _contradictions(table: RowTable) -> list[Numbers]:
    return _both_labels(table, table.prompt_keys, table.completion_keys)


def _without(groups: Iterable[Numbers], excluded: Iterable[Numbers]) -> list[Numbers]:
    """The groups that are not part of an excluded one."""
    rows = {int(at) for group in excluded for at in group}
    return [group for group in groups if not rows.issuperset(group.tolist())]


def _lines_of(table: RowTable, groups: Iterable[Numbers]) -> tuple[Group, ...]:
    """The lines of each group; the two answers of one row have one line."""
    return tuple(tuple(dict.fromkeys(table.lines[group].tolist())) for group in groups)


def _rows(
    severity: Severity, code: str, lines: Sequence[int] | Numbers, what: str, hint: str
) -> list[LintFinding]:
    """A finding about single rows; none when there are none."""
    if not len(lines):
        return []
    groups = tuple((int(line),) for line in lines)
    return [lint_finding(severity, code, len(lines), f"{counted(len(lines), 'row')} {what}", hint, groups)]


def _answers(
    severity: Severity, code: str, groups: tuple[Group, ...], what: str, hint: str
) -> list[LintFinding]:
    """A finding about answers of several rows; none when there are none."""
    if not groups:
        return []
    return [
        lint_finding(severity, code, len(groups), f"{counted(len(groups), 'answer')} {what}", hint, groups)
    ]
