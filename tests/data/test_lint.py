"""What lint reports, and that its errors are exactly what training rejects."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from kto_sweep.data.dataset import prepare_data
from kto_sweep.data.lint import LintReport, balance, lint
from kto_sweep.data.lint_findings import LintFinding
from kto_sweep.data.load import load_characters, load_tokens
from kto_sweep.data.shown_rows import RowInspector
from kto_sweep.errors import DataError, Severity
from kto_sweep.trial import Trial

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
Row = dict[str, Any]

REFUSING = (
    "{% for m in messages %}{% if 'refuse' in m['content'] %}{{ raise_exception('refused') }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def row(prompt: str, completion: str, label: object, **more: Any) -> Row:
    turns = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": completion, **more},
    ]
    return {"conversations": turns, "label": label}


def call(city: str, id: str) -> list[Row]:
    return [{"id": id, "type": "function", "function": {"name": "find", "arguments": {"city": city}}}]


def write(path: Path, rows: Sequence[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property test."""
    return tmp_path_factory.mktemp("lint")


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., LintReport]:
    """The lint report of rows, in tokens if there is a tokenizer, else in characters."""

    def run(
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_length: int = 1000,
        eval_fraction: float = 0.1,
    ) -> LintReport:
        path = write(tmp_path / "rows.jsonl", rows)
        if tokenizer is None:
            return lint(load_characters(path), max_length=None, eval_fraction=eval_fraction)
        return lint(
            load_tokens(path, tokenizer),
            max_length=max_length,
            eval_fraction=eval_fraction,
            stops=RowInspector(tokenizer, [tokenizer.eos_token_id]),
        )

    return run


Report = Callable[..., LintReport]

APART = [row(f"question {i}", f"answer {i:03}", i % 2 == 0) for i in range(400)]
"""Enough clean rows for a report without findings."""


def only(report: LintReport, code: str) -> LintFinding:
    [finding] = [finding for finding in report.findings if finding.code == code]
    return finding


def codes(report: LintReport) -> set[str]:
    return {finding.code for finding in report.findings}


# What training rejects.

good_rows = st.builds(
    row, st.sampled_from([*"pqrstu", "long " * 9]), st.sampled_from(["a", "b", "long " * 12]), st.booleans()
)
bad_rows = st.sampled_from(
    [
        {"messages": [{"role": "user", "content": "p"}], "label": True},
        row("p", "a", "maybe"),
        row("p", "refuse", True),
    ]
)
some_rows = st.one_of(
    st.lists(good_rows | bad_rows, max_size=5),
    st.builds(
        lambda good, bad: [*good, *bad],
        st.lists(good_rows, min_size=6, max_size=25),
        st.lists(bad_rows, max_size=2),
    ),
)


@settings(max_examples=300, deadline=None)
@given(
    some_rows,
    st.sampled_from([16, 40, 1000]),
    st.sampled_from([0.05, 0.1, 0.5, 0.9]),
)
def test_errors_are_what_training_rejects_and_the_rest_is_what_it_trains_on(
    make_tokenizer: MakeTokenizer,
    folder: Path,
    rows: list[Row],
    max_length: int,
    eval_fraction: float,
) -> None:
    path = write(folder / "agree.jsonl", rows)
    data = load_tokens(path, make_tokenizer(REFUSING))
    refusal = None
    try:
        trained = prepare_data(data, eval_fraction=eval_fraction, max_length=max_length)
    except DataError as error:
        refusal = error
    report = lint(data, max_length=max_length, eval_fraction=eval_fraction)
    errors = [finding for finding in report.findings if finding.severity is Severity.ERROR]
    if refusal is not None:
        [error] = errors
        assert (f"{path}: {error.what}", error.hint) == (refusal.message, refusal.hint)
        assert report.split is None
        return
    assert not errors
    assert report.split is not None
    assert (report.split.train.desirable, report.split.train.undesirable) == trained.counts
    assert (report.split.eval.desirable, report.split.eval.undesirable) == trained.eval.counts


@settings(max_examples=100, deadline=None)
@given(some_rows)
def test_without_a_tokenizer_the_same_data_is_rejected_except_for_token_checks(
    make_tokenizer: MakeTokenizer, folder: Path, rows: list[Row]
) -> None:
    path = write(folder / "characters.jsonl", rows)
    characters = lint(load_characters(path), max_length=None, eval_fraction=0.1)
    tokens = lint(load_tokens(path, make_tokenizer()), max_length=1000, eval_fraction=0.1)
    errors = [
        {finding.what for finding in report.findings if finding.severity is Severity.ERROR}
        for report in (characters, tokens)
    ]
    assert errors[0] == errors[1]
    assert characters.counts == tokens.counts
    assert characters.split == tokens.split


def test_a_file_without_rows_is_an_error(report: Report) -> None:
    finding = only(report([]), "cannot_train")
    assert finding.severity is Severity.ERROR
    assert finding.what == "no usable row: it has no rows"


# Warnings and notes.


def test_clean_rows_have_no_findings(report: Report, make_tokenizer: MakeTokenizer) -> None:
    assert codes(report(APART)) == codes(report(APART, make_tokenizer())) == set()


def test_counts_and_split(report: Report, make_tokenizer: MakeTokenizer) -> None:
    extra = [row("question 1", "another", True), {"messages": [], "label": True}]
    result = report([*APART, *extra], make_tokenizer())
    counts = result.counts
    assert (counts.rows, counts.usable, counts.desirable, counts.undesirable) == (402, 401, 201, 200)
    assert (counts.prompts, counts.prompts_with_both) == (400, 1)
    assert result.split is not None
    assert (result.split.eval.desirable, result.split.eval.undesirable) == (20, 20)
    assert (result.split.train.desirable, result.split.train.undesirable) == (181, 180)


def test_skipped_rows_are_named_by_reason(report: Report, make_tokenizer: MakeTokenizer) -> None:
    bad = [{"messages": [{"role": "user", "content": "x"}], "label": True}]
    result = report([*bad, *APART, row("refuse", "x", True), *bad], make_tokenizer(REFUSING))
    left_out = [finding for finding in result.findings if finding.code == "left_out"]
    assert [(finding.what, finding.lines) for finding in left_out] == [
        ("2 rows skipped: no assistant turn", [1, 403]),
        ("1 row skipped: rejected by the chat template: refused", [402]),
    ]
    assert {finding.severity for finding in left_out} == {Severity.WARNING}


def test_copies_are_named_with_their_original(report: Report) -> None:
    result = report([*APART, APART[4], APART[4], APART[7]])
    copies = only(result, "duplicate")
    assert (copies.severity, copies.count) == (Severity.WARNING, 3)
    assert copies.groups == ((5, 401, 402), (8, 403))
    assert "contradictory" not in codes(result)


def test_ids_of_tool_calls_are_ignored(report: Report) -> None:
    twice = [row("where?", "", True, tool_calls=call("Oslo", id)) for id in ("a1", "b2")]
    other = row("where?", "", True, tool_calls=call("Rome", "a1"))
    assert only(report([*APART, *twice, other]), "duplicate").groups == ((401, 402),)


def test_contradictions_are_named_together(report: Report) -> None:
    result = report([*APART, row("question 0", "answer 000", False)])
    answers = only(result, "contradictory")
    assert (answers.severity, answers.count, answers.groups) == (Severity.WARNING, 1, ((1, 401),))
    assert "duplicate" not in codes(result)


def test_answers_that_differ_only_in_their_calls_are_noted(report: Report) -> None:
    rows = [row("where?", "Looking.", label, tool_calls=call(str(label), "a")) for label in (True, False)]
    silent = [row("who?", "", label, tool_calls=call(str(label), "a")) for label in (True, False)]
    result = report([*APART, *rows, *silent])
    noted = only(result, "contradictory_without_calls")
    assert (noted.severity, noted.groups) == (Severity.NOTE, ((401, 402),))
    assert "contradictory" not in codes(result)


def test_answers_that_differ_only_after_truncation_are_named(
    report: Report, make_tokenizer: MakeTokenizer
) -> None:
    ends = [row("where?", "same " * 20 + end, label) for end, label in (("x", True), ("y", False))]
    rows = [*APART, *ends, row("question 0", "answer 000", False)]
    tokenizer = make_tokenizer()
    result = report(rows, tokenizer, max_length=60)
    assert only(result, "contradictory_when_cut").groups == ((401, 402),)
    assert only(result, "contradictory").groups == ((1, 403),)
    assert "contradictory_when_cut" not in codes(report(rows, tokenizer, max_length=1000))


def test_neighbours_with_one_prompt_are_noted(report: Report) -> None:
    neighbours = only(report([*APART, APART[399], APART[0], APART[399]]), "same_prompt_neighbours")
    assert (neighbours.severity, neighbours.lines) == (Severity.NOTE, [401])
    paired = [row(f"question {i // 2}", f"answer {i:03}", i % 2 == 0) for i in range(400)]
    assert only(report(paired), "same_prompt_neighbours").count == 200


def test_turns_after_the_answer_are_noted(report: Report) -> None:
    later = row("x", "y", True)
    later["conversations"].append({"role": "user", "content": "thanks"})
    finding = only(report([*APART, later]), "later_turns")
    assert (finding.severity, finding.lines) == (Severity.NOTE, [401])


@pytest.mark.parametrize(
    ("desirable", "undesirable", "rho", "weights"),
    [
        (100, 100, 1.0, (1, 1)),
        (120, 100, 1.2, (1, 1)),
        (133, 100, 1.33, (1, 1)),
        (300, 100, 1.0, (1, 3)),
        (90, 100, 1.0, (10 / 9, 1)),
        (100, 400, 1.0, (4, 1)),
    ],
)
def test_balance_says_the_rho_to_use_and_its_weights(
    desirable: int, undesirable: int, rho: float, weights: tuple[float, float]
) -> None:
    result = balance(desirable, undesirable)
    assert result is not None
    assert result.rho == pytest.approx(rho)
    used = (result.desirable_weight, result.undesirable_weight)
    assert used == pytest.approx(weights)
    assert used == Trial(dataset="x", rho=result.rho).weights(desirable, undesirable)
    # By definition: the total weight of desirable rows over that of undesirable ones.
    assert used[0] * desirable / (used[1] * undesirable) == pytest.approx(rho)


@pytest.mark.parametrize(("more", "ratio"), [(True, "1.5 desirable rows"), (False, "1.5 undesirable rows")])
def test_imbalance_gets_a_warning_with_the_rho_to_use(report: Report, more: bool, ratio: str) -> None:
    finding = only(report([*APART, *(row(f"more {i}", "answer 999", more) for i in range(100))]), "imbalance")
    assert finding.severity is Severity.WARNING
    assert finding.what.startswith(ratio)
    fewer = "undesirable_weight" if more else "desirable_weight"
    assert finding.hint == f"rho: 1 gives both labels the same weight (or {fewer}: 1.5)"


def test_labels_predicted_by_length_get_a_warning(report: Report) -> None:
    longer = [row(f"q {i}", "x" * (10 + i % 7 + 4 * (i % 2)), i % 2 == 1) for i in range(200)]
    result = report(longer)
    leak = only(result, "length_leak")
    assert result.lengths.auc is not None
    assert 0.8 < result.lengths.auc < 1
    assert f"AUC {result.lengths.auc:.2f}, desirable completions are longer" in leak.what
    shorter = [{**item, "label": not item["label"]} for item in longer]
    assert "undesirable completions are longer" in only(report(shorter), "length_leak").what
    # Of two rows, one is always longer: that is no evidence.
    assert "length_leak" not in codes(report(longer[:6]))


def test_truncated_rows_are_named_by_line_with_the_max_length_that_fits_all(
    report: Report, make_tokenizer: MakeTokenizer
) -> None:
    # Each byte and each tag is a token: the template adds 4 tokens to a prompt and 2 to a completion.
    rows = [
        row("p" * 100, "c", True),  # 104 + 3: the prompt alone is too long
        row("p" * 46, "c" * 30, False),  # 50 + 32: room for the completion, and half for the prompt
        row("p" * 10, "c" * 70, True),  # 14 + 72: the completion is too long
        row("p" * 60, "c", False),  # 64 + 3: the prompt fills it exactly
        row("p" * 59, "c" * 8, False),  # 63 + 10: too long together
        row("p" * 40, "c" * 18, True),  # 44 + 20: just fits
    ]
    result = report([*APART, *rows], make_tokenizer(), max_length=64)
    assert only(result, "prompt_fills_max_length").lines == [401, 404]
    assert only(result, "prompt_cut").lines == [402, 405]
    assert only(result, "completion_cut").lines == [403]
    assert only(result, "prompt_cut").hint == "max_length: 107 fits every row, 67 fits 99 of 100"
    assert result.lengths.total is not None
    assert result.lengths.total.max == 107
    assert not codes(report([*APART, *rows], make_tokenizer(), max_length=107)) & {
        "prompt_fills_max_length",
        "prompt_cut",
        "completion_cut",
    }


def test_too_few_held_out_rows_get_a_warning(report: Report) -> None:
    finding = only(report(APART[:100]), "few_held_out")
    assert finding.what.startswith("only 5 desirable and 5 undesirable rows are held out")
    assert finding.hint == "eval_fraction: 0.4"
    assert "few_held_out" not in codes(report(APART[:100], eval_fraction=0.4))
    assert only(report(APART[:40]), "few_held_out").hint == "add rows with other prompts"
    alone = [row(f"q {i}", "a", i == 0) for i in range(12)]
    assert "undesirable" in only(report(alone, eval_fraction=0.2), "held_out_one_label").what


def test_errors_come_first_and_notes_last(report: Report) -> None:
    later = row("x", "y", True)
    later["conversations"].append({"role": "user", "content": "thanks"})
    result = report([later, later, {"label": True}])
    levels = [finding.severity for finding in result.findings]
    assert levels == sorted(levels, key=list(Severity).index)
    assert set(levels) == set(Severity)
    assert [result.count(level) for level in Severity] == [1, 2, 2]


def test_columns_forms_and_what_the_template_does_not_read_are_named_once(
    report: Report, make_tokenizer: MakeTokenizer
) -> None:
    tools = [{"type": "function", "function": {"name": "find"}}]
    rows = [{**item, "id": at, "tools": tools} for at, item in enumerate(APART)]
    result = report([*rows, {"query": "q", "response": "a", "label": 1}], make_tokenizer())
    assert only(result, "not_used").what == "column id is not used (400 rows)"
    assert only(result, "not_read").what == "the model's chat template does not read tools (400 rows)"
    assert only(result, "form").what == "1 row understood as query and response as a conversation"


def test_rows_that_differ_in_what_the_template_reads_do_not_contradict(report: Report) -> None:
    def with_tool(name: str, label: bool) -> Row:
        return {**row("where?", "there", label), "tools": [{"function": {"name": name}}]}

    result = report([*APART, with_tool("find", True), with_tool("send", False)])
    assert not codes(result) & {"contradictory", "duplicate"}
    systems = [{**row("where?", "there", label), "system": str(label)} for label in (True, False)]
    assert not codes(report([*APART, *systems])) & {"contradictory", "duplicate"}
    ids = [{**row("where?", "there", label), "id": str(label)} for label in (True, False)]
    assert "contradictory" in codes(report([*APART, *ids]))


def test_prompts_that_differ_in_white_space_only_are_one(report: Report) -> None:
    copies = [row("question  0\n", "answer 000", True), row(" question 1", "answer 001", True)]
    result = report([*APART, *copies])
    assert only(result, "duplicate").groups == ((1, 401),)
    assert only(result, "contradictory").groups == ((2, 402),)
    assert result.counts.prompts == 400


def test_a_pair_with_equal_answers_is_one_line(report: Report) -> None:
    finding = only(report([*APART, {"prompt": "q", "chosen": "a", "rejected": "a"}]), "contradictory")
    assert finding.groups == ((401,),)


def test_answers_without_a_stop_token_and_doubled_beginnings_are_named(
    report: Report, make_tokenizer: MakeTokenizer
) -> None:
    ends_otherwise = REFUSING.replace("<|end|>", "<|tool|>")
    result = report(APART, make_tokenizer(ends_otherwise))
    assert only(result, "no_stop").count == 400
    left_open = report(APART, make_tokenizer(REFUSING.replace("<|end|>", "")))
    assert only(left_open, "end_appended").count == 400
    assert "no_stop" not in codes(left_open)
    doubled = make_tokenizer("{{ bos_token }}{{ bos_token }}" + REFUSING, bos="<|begin|>")
    assert only(report(APART, doubled), "double_begin").count == 400
    assert "double_begin" not in codes(report(APART, make_tokenizer(REFUSING, bos="<|begin|>")))


def test_held_out_rows_of_their_own_are_checked(folder: Path) -> None:
    rows = load_characters(write(folder / "train.jsonl", APART))
    held_out = load_characters(write(folder / "test.jsonl", [*APART[:3], row("new", "x", False)]))
    result = lint(rows, max_length=None, eval_fraction=0.1, held_out=held_out)
    assert result.split is not None
    assert (result.split.train.desirable, result.split.eval.desirable) == (200, 2)
    assert only(result, "held_out_prompt_trained").count == 3
