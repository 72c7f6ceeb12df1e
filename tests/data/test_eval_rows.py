"""The fingerprint of held-out rows: it changes with what a trial is judged on, and with nothing else."""

from dataclasses import replace

import pytest

from kto_sweep.data.dataset import prepare_data
from kto_sweep.data.eval_rows import fingerprint_examples
from kto_sweep.data.formats import LoadedData
from kto_sweep.data.rows import Example, TokenRow
from kto_sweep.data.tokenise import TokenisedData

ROWS = [
    Example("question", "answer", True, 1),
    Example(({"role": "user", "content": "question"},), ({"role": "assistant", "content": "a"},), False, 2),
]


@pytest.mark.parametrize(
    "other",
    [
        [replace(ROWS[0], prompt="Question"), ROWS[1]],
        [replace(ROWS[0], completion="answers"), ROWS[1]],
        [replace(ROWS[0], label=False), ROWS[1]],
        [ROWS[0], replace(ROWS[1], prompt=({"role": "system", "content": "question"},))],
        ROWS[::-1],
        ROWS[:1],
    ],
)
def test_other_rows_have_another_fingerprint(other: list[Example]) -> None:
    assert fingerprint_examples(other, None) != fingerprint_examples(ROWS, None)


def test_rows_cut_elsewhere_have_another_fingerprint() -> None:
    assert len({fingerprint_examples(ROWS, cut_to) for cut_to in (None, 64, 128)}) == 3


def test_the_place_in_the_file_does_not_count() -> None:
    moved = [replace(row, line=row.line + 7) for row in ROWS]
    assert fingerprint_examples(moved, None) == fingerprint_examples(ROWS, None)


def prepared(max_length: int, *, eval_fraction: float = 0.2, more: int = 0) -> str:
    """The fingerprint of the held-out rows of 20 prompts, each with 3 tokens."""
    count = 20 + more
    loaded = LoadedData("rows.jsonl", [Example(f"p{at}", "c", at % 2 == 0, at) for at in range(count)], [], 0)
    rows = [TokenRow([at, 7], [8], at % 2 == 0, at) for at in range(count)]
    tokens = TokenisedData(rows, list(range(count)), [], 0, 0)
    return prepare_data(loaded, tokens, eval_fraction=eval_fraction, max_length=max_length).eval_fingerprint


def test_held_out_rows_that_max_length_does_not_cut_have_one_fingerprint() -> None:
    assert prepared(100) == prepared(50)
    assert prepared(3) != prepared(100)  # it may cut rows that fill it


def test_other_held_out_rows_have_another_fingerprint() -> None:
    assert len({prepared(100), prepared(100, eval_fraction=0.4), prepared(100, more=20)}) == 3
