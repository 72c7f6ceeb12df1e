from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kto_sweep.data.rows import TokenRow
from kto_sweep.data.split import all_batches, batches, partners, split_by_prompt, total_steps
from kto_sweep.errors import DataError


def row(group: int, label: bool, answer: int = 0) -> TokenRow:
    return TokenRow(prompt=[group, 7, 7], completion=[answer], label=label, group=group)


def many(groups: int, per_group: int = 2) -> list[TokenRow]:
    return [row(g, label=i % 2 == 0, answer=i) for g in range(groups) for i in range(per_group)]


def flat(lists: list[list[int]]) -> list[int]:
    return [item for part in lists for item in part]


some_rows = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=4, max_size=60).map(
    lambda pairs: [row(group, label, answer=at) for at, (group, label) in enumerate(pairs)]
)


@settings(max_examples=200, deadline=None)
@given(some_rows, st.floats(0.01, 0.9))
def test_split_keeps_prompts_together_and_loses_no_row(rows: list[TokenRow], fraction: float) -> None:
    train, held_out = split_by_prompt(rows, fraction, seed=0)
    assert not {r.group for r in train} & {r.group for r in held_out}
    assert sorted([*train, *held_out], key=lambda r: r.completion) == rows
    groups = {r.group for r in rows}
    least = min(2, len(groups) // 2)
    assert len({r.group for r in train}) >= least
    assert len({r.group for r in held_out}) >= least


def test_split_is_stratified_by_label() -> None:
    rows = [row(g, label=g % 10 == 0) for g in range(1000)]
    _, held_out = split_by_prompt(rows, 0.1, seed=0)
    assert len(held_out) == 100
    assert sum(r.label for r in held_out) == 10


def test_split_holds_out_both_labels_of_a_small_file() -> None:
    rows = [row(g, label=g < 3) for g in range(12)]
    _, held_out = split_by_prompt(rows, 0.05, seed=0)
    assert {r.label for r in held_out} == {True, False}


def test_split_depends_on_content_and_seed_and_not_on_order() -> None:
    rows = many(50)
    held_out = split_by_prompt(rows, 0.2, seed=0)[1]
    # A different order also changes the group numbers, which count prompts in order of appearance.
    backwards = [TokenRow(r.prompt, r.completion, r.label, 49 - r.group) for r in reversed(rows)]
    again = split_by_prompt(backwards, 0.2, seed=0)[1]
    assert {tuple(r.prompt) for r in again} == {tuple(r.prompt) for r in held_out}
    other = split_by_prompt(rows, 0.2, seed=1)[1]
    assert {tuple(r.prompt) for r in other} != {tuple(r.prompt) for r in held_out}


def test_split_of_no_rows_holds_none_out() -> None:
    assert split_by_prompt(many(3), 0, seed=0) == (many(3), [])


@settings(max_examples=200, deadline=None)
@given(some_rows, st.integers(0, 5))
def test_partners_have_another_prompt_and_use_each_completion_equally(
    rows: list[TokenRow], seed: int
) -> None:
    sizes = Counter(r.group for r in rows)
    if len(sizes) < 2:
        with pytest.raises(DataError, match="same prompt"):
            partners(rows, seed)
        return
    result = partners(rows, seed)
    assert all(rows[i].group != rows[j].group for i, j in enumerate(result))
    used = Counter(result)
    largest = max(sizes.values())
    if 2 * largest <= len(rows):
        assert set(used.values()) == {1}
        assert len(used) == len(rows)
    else:
        others = len(rows) - largest
        assert max(used.values()) <= -(-largest // others)


def test_partners_are_fixed_by_the_seed() -> None:
    rows = many(20)
    assert partners(rows, 0) == partners(rows, 0)
    assert partners(rows, 0) != partners(rows, 1)


def test_batches_use_each_row_once_in_an_order_of_the_epoch() -> None:
    first, second = batches(10, 4, 0, seed=3), batches(10, 4, 1, seed=3)
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(10))
    assert first != second
    assert first == batches(10, 4, 0, seed=3)
    assert first != batches(10, 4, 0, seed=4)
    # A different batch size uses the same rows in the same order.
    assert flat(batches(10, 3, 0, seed=3)) == flat(first)


def test_all_batches_continue_over_epochs() -> None:
    steps = list(all_batches(10, 4, 7, seed=3))
    assert [epoch for epoch, _ in steps] == [0, 0, 0, 1, 1, 1, 2]
    assert [batch for _, batch in steps[3:6]] == batches(10, 4, 1, seed=3)


@pytest.mark.parametrize(
    ("n", "batch_size", "epochs", "max_steps", "steps"),
    [
        (100, 8, 1, None, 13),
        (100, 8, 2, None, 26),
        (100, 8, 0.5, None, 7),
        (100, 8, 1, 5, 5),
        (3, 8, 0.01, None, 1),
    ],
)
def test_total_steps(n: int, batch_size: int, epochs: float, max_steps: int | None, steps: int) -> None:
    assert total_steps(n, batch_size, epochs, max_steps) == steps
