import numpy as np
import pytest
import torch
from packed_cases import token_rows

from kto_sweep.data.rows import TokenRow
from kto_sweep.train.pack import Item, PairedRow, mix, pack, pack_onto, pair_rows

CPU = torch.device("cpu")


def row(prompt: list[int], completion: list[int], mismatched: list[int]) -> PairedRow:
    return PairedRow(*(np.array(ids) for ids in (prompt, completion, mismatched)), desirable=True)  # type: ignore[misc]


ITEMS = [
    Item(row([10, 11, 12], [20, 21], [30, 31, 32]), slot=0, example=0),
    Item(row([13], [22], [33]), slot=2, example=1),
    Item(row([14, 15], [23, 24, 25], [34, 35]), slot=2, example=2),
]


def test_worked_example() -> None:
    found = pack(ITEMS, 4, CPU)
    assert found.ids.tolist() == [10, 11, 12, 20, 13, 14, 15, 23, 24]
    assert found.positions.tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 3]
    assert found.predicting.tolist() == [2, 3, 4, 6, 7, 8]
    assert found.targets.tolist() == [20, 21, 22, 23, 24, 25]
    assert found.examples.tolist() == [0, 0, 1, 2, 2, 2]
    assert found.attention.query_ends.tolist() == found.attention.key_ends.tolist() == [0, 4, 5, 9]
    assert found.slot_ends.tolist() == [4, 4, 9, 9]
    assert found.slot_spans == [(0, 0, 4), (2, 4, 9)]


def test_worked_example_of_mismatched_completions_on_kept_prompts() -> None:
    base = pack(ITEMS, 4, CPU, keep=True)
    found = pack_onto(base, ITEMS, [ITEMS[0], ITEMS[2]], 4, CPU)
    assert found.ids.tolist() == [12, 30, 31, 15, 34]
    assert found.positions.tolist() == [2, 3, 4, 1, 2]
    assert found.predicting.tolist() == [0, 1, 2, 3, 4]
    assert found.targets.tolist() == [30, 31, 32, 34, 35]
    assert found.examples.tolist() == [0, 0, 0, 2, 2]
    assert found.attention.query_ends.tolist() == [0, 3, 5]
    assert found.attention.key_ends.tolist() == [0, 5, 8]
    assert found.attention.gather is not None
    # Prompt tokens from the kept row of 9, then its own tokens behind it.
    assert found.attention.gather.tolist() == [0, 1, 9, 10, 11, 5, 12, 13]
    assert found.attention.prefix is base.attention.keep
    assert found.slot_ends.tolist() == [3, 3, 5, 5]


def test_items_must_come_by_slot() -> None:
    with pytest.raises(ValueError, match="not sorted by slot"):
        pack(ITEMS[::-1], 4, CPU)


def test_partners_completions_are_cut_to_fit_and_have_a_token_at_least() -> None:
    rows = [TokenRow([1] * 6, [2] * 9, True, 0), TokenRow([3] * 10, [4] * 5, False, 1)]
    paired = pair_rows(rows, [1, 0], max_length=10)
    assert [row.mismatched.tolist() for row in paired] == [[4] * 4, [2]]
    assert [row.completion.tolist() for row in paired] == [[2] * 9, [4] * 5]


def test_dropout_keys_depend_on_the_example_and_not_on_its_neighbours() -> None:
    rows = pair_rows(token_rows(3), [1, 2, 0], 40)
    items = [Item(each, example=at, noise=at * 77) for at, each in enumerate(rows)]
    together = pack(items, 1, CPU)
    apart = torch.cat([pack([item], 1, CPU).noise for item in items])
    assert torch.equal(together.noise, apart)
    assert together.noise.unique().numel() == together.tokens


def test_prompts_have_the_same_dropout_keys_in_both_passes_and_completions_others() -> None:
    (item,) = (Item(row([1, 2, 3], [4, 5, 6], [7, 8, 9]), noise=5),)
    matched = pack([item], 1, CPU, keep=True)
    in_full = pack([item], 1, CPU, mismatched=True)
    onto = pack_onto(matched, [item], [item], 1, CPU)
    assert matched.noise[:2].tolist() == in_full.noise[:2].tolist()
    assert not set(matched.noise.tolist()) & set(in_full.noise[2:].tolist())
    assert torch.equal(in_full.noise[2:], onto.noise)


def test_mix_is_splitmix64() -> None:
    # First outputs of the generator for seed 1234567, published with Java's SplittableRandom.
    step = 0x9E3779B97F4A7C15
    seeds = np.array([1234567, (1234567 + step) % 2**64], dtype=np.uint64).view(np.int64)
    assert mix(seeds).view(np.uint64).tolist() == [6457827717110365317, 3203168211198807973]
