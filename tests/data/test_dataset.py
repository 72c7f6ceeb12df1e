from typing import Any

import pytest

from kto_sweep.data.dataset import prepare_data
from kto_sweep.data.formats import BadRow, LoadedData
from kto_sweep.data.rows import TokenRow
from kto_sweep.data.tokenise import TokenisedData
from kto_sweep.errors import DataError


def tokenised(pairs: list[tuple[int, bool]], **more: Any) -> TokenisedData:
    rows = [TokenRow([group, 7], [at], label, group) for at, (group, label) in enumerate(pairs)]
    return TokenisedData(
        **{"rows": rows, "lines": [], "bad": [], "cut_prompts": 0, "cut_completions": 0, **more}
    )


def loaded(bad: list[BadRow] | None = None, cut_turns: int = 0) -> LoadedData:
    return LoadedData("rows.jsonl", [], bad or [], cut_turns)


TEN = [(group, group % 2 == 0) for group in range(10)]


def test_rows_are_split_and_paired_within_each_side() -> None:
    data = prepare_data(loaded(), tokenised(TEN * 4), eval_fraction=0.2, max_length=100)
    assert len(data.train) == len(data.train_partners) == 32
    assert len(data.eval) == len(data.eval_partners) == 8
    assert data.counts == (16, 16)
    for rows, partner_of in ((data.train, data.train_partners), (data.eval, data.eval_partners)):
        assert all(row.group != rows[j].group for row, j in zip(rows, partner_of, strict=True))


def test_notes() -> None:
    data = prepare_data(
        loaded([BadRow(17, "no assistant turn")], cut_turns=3),
        tokenised([*TEN, *((group, True) for group in range(10, 14))], cut_completions=2),
        eval_fraction=0.2,
        max_length=100,
    )
    assert data.notes == (
        "data: rows.jsonl: 14 rows, 9 desirable, 5 undesirable, 14 prompts; 11 to train on, 3 held out",
        "data: skipped 1 row: 1 no assistant turn (line 17)",
        "data: 2 completions truncated at the end to max_length 100; "
        "3 rows with turns after the last assistant turn, which are dropped",
        "data: 1.8 desirable rows for each undesirable one; rho: 1 gives both labels the same weight",
    )


@pytest.mark.parametrize(
    ("pairs", "message", "hint"),
    [
        ([], "no usable row: 1 rejected by the chat template", "chat template"),
        ([(0, True), (1, True), (2, True), (3, True)], "all 4 usable rows have label true", "label false"),
        ([(0, False), (1, False)], "all 2 usable rows have label false", "label true"),
        ([(0, True), (0, False)], "all 2 rows have the same prompt", "at least two"),
        (
            [(0, True), (1, False), (2, False)],
            "3 distinct prompts are too few to hold out rows",
            "at least four distinct prompts",
        ),
    ],
)
def test_untrainable_data_is_rejected(pairs: list[tuple[int, bool]], message: str, hint: str) -> None:
    tokens = tokenised(pairs, bad=[BadRow(4, "rejected by the chat template")])
    with pytest.raises(DataError) as raised:
        prepare_data(loaded(), tokens, eval_fraction=0.1, max_length=100)
    assert raised.value.message.startswith("rows.jsonl: ")
    assert message in raised.value.message
    assert hint in raised.value.hint


def test_a_label_with_one_row_is_trained_on_and_not_held_out() -> None:
    tokens = tokenised([(0, True), *((group, False) for group in range(1, 9))])
    data = prepare_data(loaded(), tokens, eval_fraction=0.3, max_length=100)
    assert data.counts[0] == 1
    assert "the held-out rows have one label only" in data.notes[-1]


def test_no_held_out_rows_without_an_eval_fraction() -> None:
    data = prepare_data(loaded(), tokenised([(0, True), (1, False)]), eval_fraction=0, max_length=100)
    assert (len(data.train), data.eval, data.eval_partners) == (2, [], [])
