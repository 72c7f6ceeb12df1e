import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kto_sweep.data.auc import auc

some = st.lists(st.integers(-3, 3), min_size=1, max_size=8).map(lambda values: np.array(values, float))


@given(some, some)
def test_auc_is_the_share_of_ordered_pairs(higher: np.ndarray, lower: np.ndarray) -> None:
    pairs = [(a > b) + (a == b) / 2 for a in higher for b in lower]
    assert auc(higher, lower) == pytest.approx(np.mean(pairs))


def test_nan_gives_nan() -> None:
    assert np.isnan(auc(np.array([1.0, np.nan]), np.array([0.0])))
