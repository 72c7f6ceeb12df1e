from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kto_sweep.data.lint_lengths import BINS, histogram, percentiles, report_lengths
from kto_sweep.data.rows import Example
from kto_sweep.data.tokenise import measure

lengths = st.lists(
    st.tuples(st.integers(0, 30) | st.integers(0, 100_000), st.booleans()), min_size=1, max_size=80
)


@settings(max_examples=200, deadline=None)
@given(lengths)
def test_every_row_is_in_the_bar_whose_range_it_is_in(rows: list[tuple[int, bool]]) -> None:
    sizes, labels = np.array([n for n, _ in rows]), np.array([label for _, label in rows])
    bars = histogram(sizes, labels)
    assert 1 <= len(bars) <= BINS + 1
    for bar in bars:
        inside = (sizes >= bar.low) & ((sizes <= bar.high) if bar.high is not None else True)
        assert (bar.desirable, bar.undesirable) == ((inside & labels).sum(), (inside & ~labels).sum())
    assert sum(bar.desirable + bar.undesirable for bar in bars) == len(rows)
    assert all(after.low == bar.high + 1 for bar, after in pairwise(bars))  # type: ignore[operator]
    assert all(bar.high is not None for bar in bars[:-1])


@given(lengths)
def test_percentiles_are_lengths_in_the_data(rows: list[tuple[int, bool]]) -> None:
    sizes = np.array([n for n, _ in rows])
    result = percentiles(sizes)
    assert result is not None
    assert (result.min, result.max) == (sizes.min(), sizes.max())
    for share, length in ((0.5, result.p50), (0.9, result.p90), (0.95, result.p95), (0.99, result.p99)):
        assert length in sizes
        assert (sizes <= length).mean() >= share
        assert (sizes < length).mean() < share


def test_without_rows_there_are_no_lengths() -> None:
    lengths = report_lengths(measure([]))
    assert (lengths.prompt, lengths.total, lengths.auc, lengths.histogram) == (None, None, None, ())


def test_characters_are_those_of_all_turns_and_calls() -> None:
    call = {"type": "function", "id": "c1", "function": {"name": "find", "arguments": {"q": "x"}}}
    prompt = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"})
    answer = ({"role": "assistant", "content": "Hi.", "tool_calls": [call]},)
    data = measure([Example(prompt, answer, True, 1), Example("2+2=", " 4", False, 2)])
    assert data.prompt_lengths.tolist() == [len("Be kind.\nHello?"), 4]
    assert data.completion_lengths.tolist() == [len('Hi.\n{"name": "find", "arguments": {"q": "x"}}'), 2]


def test_auc_is_that_of_the_completions() -> None:
    rows = [
        Example("p" * n, "c" * m, label, n) for n, m, label in ((9, 1, True), (8, 3, True), (1, 2, False))
    ]
    assert report_lengths(measure(rows)).auc == pytest.approx(0.5)
