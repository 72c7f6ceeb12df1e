from collections import Counter
from dataclasses import replace

import pytest

from kto_sweep.data.dataset import DataSet, prepare_data
from kto_sweep.data.examples import BadRow, DataNotes
from kto_sweep.data.formats import LATER_TURNS
from kto_sweep.data.rows import TokenRow
from kto_sweep.data.table import RowTable
from kto_sweep.data.tokenise import TokenNotes
from kto_sweep.errors import DataError


def data_set(
    pairs: list[tuple[int, bool]],
    notes: DataNotes | None = None,
    tokens: TokenNotes | None = None,
    longer: int = 0,
) -> DataSet:
    """Rows of (prompt, label); the first `longer` have long completions."""
    rows = [
        TokenRow([prompt, 7], [at] * (99 if at < longer else 1), label, prompt)
        for at, (prompt, label) in enumerate(pairs)
    ]
    return DataSet(RowTable.from_rows(rows), notes or DataNotes("rows.jsonl"), tokens or TokenNotes())


TEN = [(group, group % 2 == 0) for group in range(10)]


def test_rows_are_split_and_paired_within_each_side() -> None:
    data = prepare_data(data_set(TEN * 4), eval_fraction=0.2, max_length=100)
    assert len(data.train) == len(data.train_partners) == 32
    assert len(data.eval) == len(data.eval_partners) == 8
    assert data.counts == (16, 16)
    for rows, partner_of in ((data.train, data.train_partners), (data.eval, data.eval_partners)):
        assert (rows.prompt_keys != rows.prompt_keys[partner_of]).all()


def test_notes() -> None:
    notes = DataNotes("rows.jsonl", bad=[BadRow(17, "no assistant turn")], ignored=Counter(id=14))
    notes.facts[LATER_TURNS] = [3, 4, 5]
    pairs = [*TEN, *((group, True) for group in range(10, 14))]
    data = data_set(pairs, notes, TokenNotes(unread=Counter(tools=1), ended=2), longer=2)
    assert prepare_data(data, eval_fraction=0.2, max_length=100).notes == (
        "data: rows.jsonl: 14 rows, 9 desirable, 5 undesirable, 14 prompts; 11 to train on, 3 held out",
        "data: 1.8 desirable rows for each undesirable one; rho: 1 gives both labels the same weight",
        "data: skipped 1 row: 1 no assistant turn (line 17)",
        "data: 3 rows with turns after the last assistant turn, which are dropped",
        "data: not used: id (14 rows)",
        "data: the chat template does not read: tools (1 row)",
        "data: the chat template leaves 2 answers open; the end-of-text token is appended",
        "data: 2 completions truncated at the end, to max_length 100",
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
    data = data_set(pairs, tokens=TokenNotes([BadRow(4, "rejected by the chat template")]))
    with pytest.raises(DataError) as raised:
        prepare_data(data, eval_fraction=0.1, max_length=100)
    assert raised.value.message.startswith("rows.jsonl: ")
    assert message in raised.value.message
    assert hint in raised.value.hint


def test_a_label_with_one_row_is_trained_on_and_not_held_out() -> None:
    data = data_set([(0, True), *((group, False) for group in range(1, 9))])
    prepared = prepare_data(data, eval_fraction=0.3, max_length=100)
    assert prepared.counts[0] == 1
    assert "the held-out rows have one label only" in prepared.notes[-1]


def test_no_held_out_rows_without_an_eval_fraction() -> None:
    data = prepare_data(data_set([(0, True), (1, False)]), eval_fraction=0, max_length=100)
    assert (len(data.train), len(data.eval), data.eval_partners.tolist()) == (2, 0, [])


def test_held_out_rows_of_their_own_are_evaluated_on_and_all_others_trained_on() -> None:
    held_out = data_set([(0, True), (20, False), (21, True)], DataNotes("test.jsonl"))
    data = prepare_data(data_set(TEN), eval_fraction=0.5, max_length=100, held_out=held_out)
    assert (len(data.train), len(data.eval)) == (10, 3)
    assert data.notes[0].endswith("10 to train on, 3 held out from test.jsonl")
    assert data.notes[1].startswith("data: 1 held-out row with a prompt that is also trained on")
    with pytest.raises(DataError, match=r"test\.jsonl: all 2 rows have the same prompt"):
        prepare_data(
            data_set(TEN),
            eval_fraction=0.5,
            max_length=100,
            held_out=data_set([(1, True), (1, False)], DataNotes("test.jsonl")),
        )


def held_out_fingerprint(max_length: int, *, eval_fraction: float = 0.2, prompts: int = 20) -> str:
    """The fingerprint of the held-out rows of prompts that have 3 tokens with their answers."""
    rows = data_set([(prompt, prompt % 2 == 0) for prompt in range(prompts)])
    return prepare_data(rows, eval_fraction=eval_fraction, max_length=max_length).eval_fingerprint


def test_held_out_rows_that_max_length_does_not_cut_have_one_fingerprint() -> None:
    assert held_out_fingerprint(100) == held_out_fingerprint(3)
    assert len({held_out_fingerprint(length) for length in (100, 2)}) == 2


def test_other_held_out_rows_have_another_fingerprint() -> None:
    others = (held_out_fingerprint(100, eval_fraction=0.4), held_out_fingerprint(100, prompts=40))
    assert len({held_out_fingerprint(100), *others}) == 3
    assert prepare_data(data_set(TEN), eval_fraction=0, max_length=100).eval_fingerprint == ""


@pytest.mark.parametrize("column", ["prompt_keys", "completion_keys", "labels"])
def test_a_fingerprint_changes_with_any_row_and_not_with_their_order(column: str) -> None:
    table = data_set(TEN).table
    assert table.take(range(9, -1, -1)).fingerprint(None) == table.fingerprint(None)
    changed = getattr(table, column).copy()
    changed[3] = not changed[3] if column == "labels" else changed[3] + 1
    assert replace(table, **{column: changed}).fingerprint(None) != table.fingerprint(None)
