"""Messages between supervisor and worker survive encoding and decoding."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kto_sweep.protocol import (
    Done,
    Failed,
    Metrics,
    Note,
    Planned,
    Preparing,
    Ready,
    StartTrial,
    StopTrial,
    decode,
    encode,
)

VALUES = st.dictionaries(st.text(), st.floats(allow_nan=False))
LINES = st.one_of(
    st.builds(StartTrial, st.text(), st.dictionaries(st.text(), st.integers() | st.text()), st.text()),
    st.builds(StopTrial, st.text()),
    st.builds(Ready, st.text()),
    st.builds(Planned, st.text(), st.integers()),
    st.builds(Preparing, st.text(), st.text(), st.integers(), st.integers()),
    st.builds(Metrics, st.text(), st.integers(), VALUES),
    st.builds(Note, st.text(), st.text()),
    st.builds(Done, st.text(), VALUES, st.integers(), st.booleans()),
    st.builds(Failed, st.text(), st.text(), st.text(), st.text(), st.text()),
)


@given(LINES)
def test_every_line_round_trips(line):
    raw = encode(line)
    assert raw.count(b"\n") == 1
    assert decode(raw) == line


def test_nan_round_trips():
    assert math.isnan(decode(encode(Metrics("r", 1, {"loss": math.nan}))).values["loss"])


@pytest.mark.parametrize("raw", [b"{}", b"[]", b'{"kind": "rm"}', b"hello", b'{"kind": "stoptrial"}'])
def test_any_other_line_is_rejected(raw):
    with pytest.raises(ValueError, match=r"."):
        decode(raw)
