from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kto_sweep.data.rows import TokenRow
from kto_sweep.data.split import all_batches, batches, partners, split_by_prompt, total_steps
from kto_sweep.data.table import RowTable
from kto_sweep.errors import DataError


def row(prompt: int, label: bool, answer: int = 0) -> TokenRow:
    return TokenRow([prompt, 7, 7], [answer], label, prompt)


def table(*rows: TokenRow) -> RowTable:
    return RowTable.from_rows(rows)


def many(prompts: int, per_prompt: int = 2) -> RowTable:
    return table(*(row(p, label=i % 2 == 0, answer=i) for p in range(prompts) for i in range(per_prompt)))


def keys(part: RowTable) -> set[int]:
    return set(part.prompt_keys.tolist())


def flat(lists: list[list[int]]) -> list[int]:
    return [item for part in lists for item in part]


some_rows = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=4, max_size=60).map(
    lambda pairs: table(*(row(prompt, label, answer=at) for at, (prompt, label) in enumerate(pairs)))
)


@settings(max_examples=200, deadline=None)
@given(some_rows, st.floats(0.01, 0.9))
def test_split_keeps_prompts_together_and_loses_no_row(rows: RowTable, fraction: float) -> None:
    train, held_out = split_by_prompt(rows, fraction, seed=0)
    assert not keys(train) & keys(held_out)
    assert sorted([*train, *held_out], key=lambda r: r.completion) == list(rows)
    least = min(2, rows.prompts() // 2)
    assert len(keys(train)) >= least
    assert len(keys(held_out)) >= least


def test_split_is_stratified_by_label() -> None:
    rows = table(*(row(p, label=p % 10 == 0) for p in range(1000)))
    _, held_out = split_by_prompt(rows, 0.1, seed=0)
    assert held_out.counts == (10, 90)


def test_split_holds_out_both_labels_of_a_small_file() -> None:
    rows = table(*(row(p, label=p < 3) for p in range(12)))
    _, held_out = split_by_prompt(rows, 0.05, seed=0)
    assert 0 not in held_out.counts


def test_split_depends_on_content_and_seed_and_not_on_order() -> None:
    rows = many(50)
    held_out = keys(split_by_prompt(rows, 0.2, seed=0)[1])
    assert keys(split_by_prompt(table(*reversed(list(rows))), 0.2, seed=0)[1]) == held_out
    assert keys(split_by_prompt(rows, 0.2, seed=1)[1]) != held_out


def test_split_depends_neither_on_tokens_nor_on_max_length() -> None:
    rows = many(50)
    others = table(*(TokenRow([1, 2, *r.prompt], [9] * 40, r.label, r.prompt_key) for r in rows))
    held_out = split_by_prompt(rows, 0.2, seed=0)[1].lines.tolist()
    assert split_by_prompt(others, 0.2, seed=0)[1].lines.tolist() == held_out
    assert split_by_prompt(others.cut(16), 0.2, seed=0)[1].lines.tolist() == held_out


def test_split_of_no_rows_holds_none_out() -> None:
    train, held_out = split_by_prompt(many(3), 0, seed=0)
    assert (list(train), len(held_out)) == (list(many(3)), 0)


@settings(max_examples=200, deadline=None)
@given(some_rows, st.integers(0, 5))
def test_partners_have_another_prompt_and_use_each_completion_equally(rows: RowTable, seed: int) -> None:
    sizes = Counter(rows.prompt_keys.tolist())
    if len(sizes) < 2:
        with pytest.raises(DataError, match="same prompt"):
            partners(rows, seed)
        return
    result = partners(rows, seed).tolist()
    assert (rows.prompt_keys != rows.prompt_keys[result]).all()
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
    assert (partners(rows, 0) == partners(rows, 0)).all()
    assert (partners(rows, 0) != partners(rows, 1)).any()


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
