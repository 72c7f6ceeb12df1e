from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_cases import token_rows

from kto_sweep.data.rows import TokenRow
from kto_sweep.train.packed.pack import Item, Pack, PairedRow, hash64, pack, pack_onto, pair_rows
from kto_sweep.train.packed.prefixes import tree

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


BEGINNING = [*range(40, 50)]
ALIKE = [
    Item(row([*BEGINNING, 1, 2], [20, 21], [30, 31]), slot=0, example=0),
    Item(row([9], [22, 23], [32]), slot=0, example=1),
    Item(row([*BEGINNING, 1, 2], [24], [33, 34]), slot=0, example=2),
    Item(row([*BEGINNING, 3], [25, 26], [35]), slot=1, example=3),
]


def seen(found: Pack, base: Pack | None = None) -> dict[int, list[int]]:
    """For each example the tokens that its last prediction is made from, itself included."""
    ids = torch.cat([base.ids, found.ids]) if base else found.ids
    gather = found.attention.gather
    keys = (torch.arange(found.tokens) if gather is None else gather).split(found.attention.key_lengths)
    ends = found.attention.query_ends.tolist()
    return {
        int(example): ids[keys[next(i for i, end in enumerate(ends[1:]) if at < end)]].tolist()
        for at, example in zip(found.predicting.tolist(), found.examples.tolist(), strict=True)
    }


def test_what_prompts_of_a_slot_begin_with_is_fed_once() -> None:
    base = pack(ALIKE, 2, CPU, keep=True)
    in_full = sum(len(item.row.prompt) + len(item.row.completion) - 1 for item in ALIKE)
    assert base.tokens == in_full - 11  # all but the last token of a prompt that is there twice
    assert seen(base) == {
        0: [*BEGINNING, 1, 2, 20], 1: [9, 22], 2: [*BEGINNING, 1, 2], 3: [*BEGINNING, 3, 25]
    }  # fmt: skip
    assert base.positions[base.predicting].tolist() == [0, 1, 11, 12, 11, 10, 11]
    onto = pack_onto(base, ALIKE, ALIKE, 2, CPU)
    assert seen(onto, base) == {
        0: [*BEGINNING, 1, 2, 30], 1: [9], 2: [*BEGINNING, 1, 2, 33], 3: [*BEGINNING, 3]
    }  # fmt: skip


def test_with_dropout_each_example_has_its_own_prompt() -> None:
    items = [replace(item, noise=1 + item.example) for item in ALIKE]
    found = pack(items, 2, CPU)
    assert found.attention.gather is None
    assert found.attention.query_lengths == [13, 2, 12, 12]


def test_beginnings_that_save_little_are_not_shared() -> None:
    long = [*range(300, 600)]
    items = [Item(row([*BEGINNING, at], long, [1]), example=at) for at in range(2)]
    assert pack(items, 1, CPU).attention.gather is None


prompts = st.lists(
    st.lists(st.integers(0, 1), min_size=1, max_size=30).map(lambda ids: np.array(ids, dtype=np.int64)),
    min_size=1,
    max_size=12,
)


@given(prompts)
def test_the_pieces_of_a_tree_put_every_prompt_together(rows: list[np.ndarray]) -> None:
    pieces = tree(rows)
    assert sorted(piece.row for piece in pieces if piece.last) == list(range(len(rows)))

    def read(at: int) -> list[int]:
        piece = pieces[at]
        before = [] if piece.after is None else read(piece.after)
        assert piece.after is None or (piece.after < at and not pieces[piece.after].last)
        assert len(before) == piece.begin < piece.end
        return before + rows[piece.row][piece.begin : piece.end].tolist()

    for at, piece in enumerate(pieces):
        if piece.last:
            assert read(at) == rows[piece.row].tolist()
    assert sum(piece.end - piece.begin for piece in pieces) <= sum(map(len, rows))


def test_a_prompt_within_a_prompt_and_a_prompt_thrice() -> None:
    long = np.arange(40)
    pieces = tree([long, long[:20], long, long, np.array([7])])
    fed = sum(piece.end - piece.begin for piece in pieces)
    assert fed == 39 + 4 + 1  # the long one once, the last token of each that is in it, the other


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
    assert hash64(seeds).view(np.uint64).tolist() == [6457827717110365317, 3203168211198807973]
