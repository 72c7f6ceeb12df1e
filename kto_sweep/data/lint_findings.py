"""What a linter finds in rows that can be trained on, one function per question."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kto_sweep.data.dataset import TrainingData
from kto_sweep.data.formats import BadRow
from kto_sweep.data.lint_lengths import LengthReport
from kto_sweep.data.lint_rows import MeasuredData, ReadData, completion_key, prompt_key, spoken_key
from kto_sweep.data.rows import Example
from kto_sweep.errors import Problem, Severity

LEAK = 0.7
"""AUC of the length alone from which it is worth a word: it tells the label of 7 in 10 pairs of rows."""

ENOUGH_HELD_OUT = 20
"""Held-out rows of each label below which `eval/auc` of an untrained model strays by 0.1 and more."""

NEAR = 4 / 3
"""How much one label may outweigh the other (KTO, arXiv 2402.01306, section 4); training warns from here."""

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


def find_left_out(bad: Iterable[BadRow]) -> list[LintFinding]:
    """Rows that training leaves out, one finding per reason, the most frequent first."""
    lines: dict[str, list[int]] = defaultdict(list)
    for row in bad:
        lines[row.why].append(row.line)
    hint = "training goes on without such rows: mend or delete them"
    return [
        finding
        for why, at in sorted(lines.items(), key=lambda item: -len(item[1]))
        for finding in _rows(Severity.WARNING, "left_out", at, f"left out: {why}", hint)
    ]


def find_later_turns(read: ReadData) -> list[LintFinding]:
    """Rows whose last turns are not trained on."""
    what = "with turns behind the last assistant turn; training leaves those turns out"
    hint = "nothing to do, if the label is about the last assistant turn"
    return _rows(Severity.NOTE, "later_turns", read.cut_turns, what, hint)


def find_copies(examples: Sequence[Example]) -> list[LintFinding]:
    """Rows that repeat an earlier one, label included; ids of tool calls aside."""
    groups = _alike(examples, lambda row: (prompt_key(row), completion_key(row), row.label))
    count = sum(len(group) - 1 for group in groups)
    what = f"{count:,} {'copy of an earlier row' if count == 1 else 'copies of earlier rows'}, label included"
    hint = "delete the copies: each weighs as much as a row of its own"
    return [lint_finding(Severity.WARNING, "duplicate", count, what, hint, groups)] if groups else []


def find_contradictions(examples: Sequence[Example]) -> list[LintFinding]:
    """Answers that carry both labels; ids of tool calls aside."""
    hint = "decide which label is right and delete the other row"
    return _answers(Severity.WARNING, "contradictory", _contradictions(examples), "with both labels", hint)


def find_contradictions_when_cut(data: MeasuredData, max_length: int) -> list[LintFinding]:
    """Answers that carry both labels only once max_length has cut away what tells them apart."""
    shortened = {*data.cut_prompts, *data.cut_completions}
    if not shortened:
        return []
    known = _contradictions(data.examples)
    row_at = dict(zip(data.tokens.lines, data.tokens.rows, strict=True))

    def key(example: Example) -> object:
        row = row_at[example.line]
        return tuple(row.prompt), tuple(row.completion)

    groups = [group for group in _both_labels(data.examples, key) if shortened.intersection(group)]
    what = f"with both labels once cut to max_length {max_length}"
    hint = "a larger max_length keeps what tells them apart"
    return _answers(Severity.WARNING, "contradictory_when_cut", _without(groups, known), what, hint)


def find_contradictions_but_for_calls(examples: Sequence[Example]) -> list[LintFinding]:
    """Answers that say the same under both labels, and differ in their tool calls."""
    talking = [row for row in examples if spoken_key(row)]
    groups = _both_labels(talking, lambda row: (prompt_key(row), spoken_key(row)))
    return _answers(
        Severity.NOTE,
        "contradictory_without_calls",
        _without(groups, _contradictions(examples)),
        "with both labels that differ in their tool calls alone",
        "nothing to do: the calls are trained on; what drops tool_calls sees contradictions here",
    )


def find_neighbours(data: MeasuredData) -> list[LintFinding]:
    """Rows that stand right behind a row with the same prompt."""
    behind = [
        line
        for line, (row, after) in zip(data.tokens.lines[1:], pairwise(data.tokens.rows), strict=False)
        if row.group == after.group
    ]
    what = "right behind a row with the same prompt"
    hint = (
        "nothing to do: rows are shuffled, and a mismatched answer always comes from another prompt; "
        "trainers that mismatch neighbours, as TRL does, get a wrong KL from this order"
    )
    return _rows(Severity.NOTE, "same_prompt_neighbours", behind, what, hint)


def find_imbalance(desirable: int, undesirable: int) -> list[LintFinding]:
    """One label that far outnumbers the other; the same bound as training's own note."""
    more, fewer = max(desirable, undesirable), min(desirable, undesirable)
    if fewer == 0 or more <= NEAR * fewer:
        return []
    sides = ("desirable", "undesirable") if desirable > undesirable else ("undesirable", "desirable")
    ratio = more / fewer
    what = f"{ratio:.2g} {sides[0]} rows for each {sides[1]} one"
    hint = f"rho: 1 weighs both labels the same (or {sides[1]}_weight: {ratio:.3g})"
    return [lint_finding(Severity.WARNING, "imbalance", more - fewer, what, hint)]


def find_length_leak(lengths: LengthReport, desirable: int, undesirable: int) -> list[LintFinding]:
    """Labels that the completion's length gives away, beyond what chance does with so few rows."""
    if lengths.auc is None:
        return []
    # Standard deviation of Mann-Whitney's U over n m, when length says nothing.
    chance = math.sqrt((desirable + undesirable + 1) / (12 * desirable * undesirable))
    strength = max(lengths.auc, 1 - lengths.auc)
    if strength < max(LEAK, 0.5 + 3 * chance):
        return []
    longer, shorter = ("desirable", "undesirable") if lengths.auc > 0.5 else ("undesirable", "desirable")
    what = f"length alone tells the labels apart: AUC {strength:.2f}, {longer} completions are longer"
    learned = "more" if longer == "desirable" else "less"
    hint = f"add short {longer} and long {shorter} ones, or the model may just learn to write {learned}"
    return [lint_finding(Severity.WARNING, "length_leak", desirable + undesirable, what, hint)]


def find_cuts(data: MeasuredData, lengths: LengthReport, max_length: int) -> list[LintFinding]:
    """Rows that lose tokens to max_length."""
    if lengths.total is None:
        return []
    filled = [line for line, n in zip(data.tokens.lines, data.prompts, strict=True) if n >= max_length]
    others = sorted(set(data.cut_prompts).difference(filled))
    hint = f"max_length: {lengths.total.max} holds every row"
    if max_length < lengths.total.p99 < lengths.total.max:
        hint += f", {lengths.total.p99} holds 99 in 100"
    alone = (
        f"with a prompt that fills max_length {max_length}; the prompt keeps its end, at most half of that"
    )
    begin = f"with a prompt cut at its beginning to max_length {max_length}"
    end = f"with a completion cut at its end to max_length {max_length}"
    return [
        *_rows(Severity.WARNING, "prompt_fills_max_length", filled, alone, hint),
        *_rows(Severity.WARNING, "prompt_cut", others, begin, hint),
        *_rows(Severity.WARNING, "completion_cut", data.cut_completions, end, hint),
    ]


def find_thin_split(split: TrainingData, eval_fraction: float) -> list[LintFinding]:
    """Held-out rows that are too few, or of one label, for the eval metrics to say much."""
    desirable = sum(row.label for row in split.eval)
    undesirable = len(split.eval) - desirable
    fewest = min(desirable, undesirable)
    if fewest >= ENOUGH_HELD_OUT:
        return []
    usable = [split.counts[0] + desirable, split.counts[1] + undesirable]
    wanted = math.ceil(20 * ENOUGH_HELD_OUT / min(usable)) / 20  # in steps of 0.05
    hint = f"eval_fraction: {wanted:g}" if eval_fraction < wanted <= 0.5 else "add rows with other prompts"
    if fewest == 0:
        one = "desirable" if desirable else "undesirable"
        what = f"all held-out rows are {one}: eval/auc and margins stay empty"
        return [lint_finding(Severity.WARNING, "held_out_one_label", len(split.eval), what, hint)]
    what = (
        f"only {desirable} desirable and {undesirable} undesirable rows are held out: eval metrics are noisy"
    )
    return [lint_finding(Severity.WARNING, "few_held_out", len(split.eval), what, hint)]


def _alike(rows: Iterable[Example], key: Callable[[Example], object]) -> tuple[Group, ...]:
    """Lines of rows with the same key, where there are several; in file order."""
    lines: dict[object, list[int]] = defaultdict(list)
    for row in rows:
        lines[key(row)].append(row.line)
    return tuple(tuple(group) for group in lines.values() if len(group) > 1)


def _both_labels(rows: Sequence[Example], key: Callable[[Example], object]) -> tuple[Group, ...]:
    """The same, where the rows carry both labels."""
    label = {row.line: row.label for row in rows}
    return tuple(group for group in _alike(rows, key) if len({label[line] for line in group}) == 2)


def _contradictions(examples: Sequence[Example]) -> tuple[Group, ...]:
    return _both_labels(examples, lambda row: (prompt_key(row), completion_key(row)))


def _without(groups: Iterable[Group], known: Iterable[Group]) -> tuple[Group, ...]:
    """The groups that are not part of a known one."""
    lines = {line for group in known for line in group}
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
    """A finding about answers that several rows share; none when there are none."""
    if not groups:
        return []
    text = f"{len(groups):,} answer{'' if len(groups) == 1 else 's'} {what}"
    return [lint_finding(severity, code, len(groups), text, hint, groups)]
