from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_cases import token_rows

from kto_sweep.data.keys import hash64
from kto_sweep.data.rows import TokenRow
from kto_sweep.data.table import RowTable
from kto_sweep.train.packed.pack import Item, Pack, PairedRow, PairedRows, pack, pack_onto
from kto_sweep.train.packed.prefixes import tree

CPU = torch.device("cpu")


def row(prompt: list[int], completion: list[int], mismatched: list[int]) -> PairedRow:
    return PairedRow(*(np.array(ids) for ids in (prompt, completion, mismatched)), desirable=True)  # type: ignore[misc]


ITEMS = [
    Item(row([10, 11, 12], [20, 21], [30, 31, 32]), slot=0, example=0),
    Item(row([13], [22], [33]), slot=2, example=1),
    Item(row([14, 15], [23, 24, 25], [34, 35]), slot=2, example=2),
]


def test_a_worked_example() -> None:
    packed = pack(ITEMS, 4, CPU)
    assert packed.ids.tolist() == [10, 11, 12, 20, 13, 14, 15, 23, 24]
    assert packed.positions.tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 3]
    assert packed.predicting.tolist() == [2, 3, 4, 6, 7, 8]
    assert packed.targets.tolist() == [20, 21, 22, 23, 24, 25]
    assert packed.examples.tolist() == [0, 0, 1, 2, 2, 2]
    assert packed.attention.query_ends.tolist() == packed.attention.key_ends.tolist() == [0, 4, 5, 9]
    assert packed.slot_ends.tolist() == [4, 4, 9, 9]
    assert packed.slot_spans == [(0, 0, 4), (2, 4, 9)]


def test_a_worked_example_of_mismatched_completions_on_kept_prompts() -> None:
    base = pack(ITEMS, 4, CPU, keep=True)
    packed = pack_onto(base, ITEMS, [ITEMS[0], ITEMS[2]], 4, CPU)
    assert packed.ids.tolist() == [12, 30, 31, 15, 34]
    assert packed.positions.tolist() == [2, 3, 4, 1, 2]
    assert packed.predicting.tolist() == [0, 1, 2, 3, 4]
    assert packed.targets.tolist() == [30, 31, 32, 34, 35]
    assert packed.examples.tolist() == [0, 0, 0, 2, 2]
    assert packed.attention.query_ends.tolist() == [0, 3, 5]
    assert packed.attention.key_ends.tolist() == [0, 5, 8]
    assert packed.attention.gather is not None
    # Prompt tokens from the kept row of 9, then its own tokens behind it.
    assert packed.attention.gather.tolist() == [0, 1, 9, 10, 11, 5, 12, 13]
    assert packed.attention.prefix is base.attention.keep
    assert packed.slot_ends.tolist() == [3, 3, 5, 5]


PREFIX = [*range(40, 50)]
SHARING = [
    Item(row([*PREFIX, 1, 2], [20, 21], [30, 31]), slot=0, example=0),
    Item(row([9], [22, 23], [32]), slot=0, example=1),
    Item(row([*PREFIX, 1, 2], [24], [33, 34]), slot=0, example=2),
    Item(row([*PREFIX, 3], [25, 26], [35]), slot=1, example=3),
]


def attended(packed: Pack, base: Pack | None = None) -> dict[int, list[int]]:
    """For each example, the tokens that its last prediction attends to, its own included."""
    ids = torch.cat([base.ids, packed.ids]) if base else packed.ids
    gather = packed.attention.gather
    keys = (torch.arange(packed.tokens) if gather is None else gather).split(packed.attention.key_lengths)
    ends = packed.attention.query_ends.tolist()
    return {
        int(example): ids[keys[next(i for i, end in enumerate(ends[1:]) if at < end)]].tolist()
        for at, example in zip(packed.predicting.tolist(), packed.examples.tolist(), strict=True)
    }


def test_a_prefix_that_prompts_of_a_slot_share_is_fed_once() -> None:
    base = pack(SHARING, 2, CPU, keep=True)
    in_full = sum(len(item.row.prompt) + len(item.row.completion) - 1 for item in SHARING)
    assert base.tokens == in_full - 11  # all but the last token of the prompt that comes twice
    assert attended(base) == {
        0: [*PREFIX, 1, 2, 20], 1: [9, 22], 2: [*PREFIX, 1, 2], 3: [*PREFIX, 3, 25]
    }  # fmt: skip
    assert base.positions[base.predicting].tolist() == [0, 1, 11, 12, 11, 10, 11]
    onto = pack_onto(base, SHARING, SHARING, 2, CPU)
    assert attended(onto, base) == {
        0: [*PREFIX, 1, 2, 30], 1: [9], 2: [*PREFIX, 1, 2, 33], 3: [*PREFIX, 3]
    }  # fmt: skip


def test_with_dropout_each_example_has_its_own_prompt() -> None:
    items = [replace(item, noise=1 + item.example) for item in SHARING]
    packed = pack(items, 2, CPU)
    assert packed.attention.gather is None
    assert packed.attention.query_lengths == [13, 2, 12, 12]


def test_prefixes_that_save_little_are_not_shared() -> None:
    long = [*range(300, 600)]
    items = [Item(row([*PREFIX, at], long, [1]), example=at) for at in range(2)]
    assert pack(items, 1, CPU).attention.gather is None


prompts = st.lists(
    st.lists(st.integers(0, 1), min_size=1, max_size=30).map(lambda ids: np.array(ids, dtype=np.int64)),
    min_size=1,
    max_size=12,
)


@given(prompts)
def test_the_segments_of_a_tree_make_up_every_prompt(rows: list[np.ndarray]) -> None:
    segments = tree(rows)
    assert sorted(segment.row for segment in segments if segment.last) == list(range(len(rows)))

    def read(at: int) -> list[int]:
        segment = segments[at]
        before = [] if segment.after is None else read(segment.after)
        assert segment.after is None or (segment.after < at and not segments[segment.after].last)
        assert len(before) == segment.begin < segment.end
        return before + rows[segment.row][segment.begin : segment.end].tolist()

    for at, segment in enumerate(segments):
        if segment.last:
            assert read(at) == rows[segment.row].tolist()
    assert sum(segment.end - segment.begin for segment in segments) <= sum(map(len, rows))


def test_a_prompt_within_a_prompt_and_a_prompt_three_times() -> None:
    long = np.arange(40)
    segments = tree([long, long[:20], long, long, np.array([7])])
    fed = sum(segment.end - segment.begin for segment in segments)
    # The long prompt once, the last tokens of its three copies and of its part, the other prompt.
    assert fed == 39 + 4 + 1


def test_items_must_be_sorted_by_slot() -> None:
    with pytest.raises(ValueError, match="not sorted by slot"):
        pack(ITEMS[::-1], 4, CPU)


def test_a_partners_completion_is_cut_to_fit_but_keeps_a_token() -> None:
    rows = RowTable.from_rows([TokenRow([1] * 6, [2] * 9, True, 0), TokenRow([3] * 10, [4] * 5, False, 1)])
    paired = PairedRows(rows, [1, 0], max_length=10)
    assert [row.mismatched.tolist() for row in paired] == [[4] * 4, [2]]
    assert [row.completion.tolist() for row in paired] == [[2] * 9, [4] * 5]


def test_dropout_keys_depend_on_the_example_and_not_on_its_neighbours() -> None:
    rows = PairedRows(token_rows(3), [1, 2, 0], 40)
    items = [Item(row, example=at, noise=at * 77) for at, row in enumerate(rows)]
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


def test_hash64_is_splitmix64() -> None:
    # First outputs of the generator for seed 1234567, published with Java's SplittableRandom.
    step = 0x9E3779B97F4A7C15
    seeds = np.array([1234567, (1234567 + step) % 2**64], dtype=np.uint64).view(np.int64)
    assert hash64(seeds).view(np.uint64).tolist() == [6457827717110365317, 3203168211198807973]
