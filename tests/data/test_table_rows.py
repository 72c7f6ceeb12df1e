"""What typed columns of parquet and Arrow files mean as JSON values."""

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from kto_sweep.data import table_rows
from kto_sweep.data.sources import read_rows
from kto_sweep.errors import DataError


@pytest.fixture
def read(tmp_path: Path):
    def read(table: Any) -> list[Any]:
        path = tmp_path / "rows.parquet"
        if isinstance(table, pa.Table):
            parquet.write_table(table, path)
        else:
            table.to_parquet(path)
        rows = list(read_rows(str(path))[1])
        assert [row.number for row in rows] == list(range(1, len(rows) + 1))
        values = [row.value for row in rows]
        json.dumps(values, allow_nan=False)
        return values

    return read


def test_keys_of_other_rows_stay_away(read) -> None:
    turn = {"role": "assistant", "calls": [{"arguments": {"id": 1, "deep": {"x": 1}}}]}
    rows = [
        {
            "messages": [{"role": "user", "content": "q"}, {"calls": [{"arguments": {"city": "Oslo"}}]}],
            "label": True,
        },
        {"messages": [turn]},
        {"messages": [{"role": "assistant", "calls": [{"arguments": {}}]}]},
    ]
    assert read(datasets.Dataset.from_list(rows)) == rows


def test_class_labels_become_their_names(read) -> None:
    label = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features(
        {
            "label": label,
            "all": datasets.List(label),
            "inside": {"label": label},
            "other": datasets.Value("int64"),
        }
    )
    rows = [
        {"label": 1, "all": [0, 1], "inside": {"label": 0}, "other": 1},
        {"label": -1, "all": None, "inside": None, "other": 0},
    ]
    assert read(datasets.Dataset.from_list(rows, features=features)) == [
        {"label": "good", "all": ["bad", "good"], "inside": {"label": "bad"}, "other": 1},
        {"other": 0},
    ]


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="datasets before Json columns")
def test_json_columns_are_values_with_their_nulls(read) -> None:
    features = datasets.Features({"arguments": datasets.Json()})
    rows = [{"arguments": {"city": None}}, {"arguments": [1]}]
    assert read(datasets.Dataset.from_list(rows, features=features)) == rows


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1.5, float("nan"), float("inf")], pa.float64(), [1.5, None, None]),
        ([Decimal("1.00"), Decimal("0.25")], pa.decimal128(5, 2), [1, 0.25]),
        ([b"caf\xc3\xa9", b"\xff\x00"], pa.binary(), ["café", "/wA="]),
        ([datetime.date(2026, 1, 2)], pa.date32(), ["2026-01-02"]),
        ([datetime.datetime(2026, 1, 2, 3, 4)], pa.timestamp("ns"), ["2026-01-02T03:04:00"]),
        ([datetime.timedelta(seconds=90)], pa.duration("s"), ["0:01:30"]),
        ([[("a", None), ("b", 1)], []], pa.map_(pa.string(), pa.int64()), [{"a": None, "b": 1}, {}]),
        (["x", "y"], pa.dictionary(pa.int8(), pa.string()), ["x", "y"]),
        ([["x"], [None], None], pa.large_list(pa.large_string()), [["x"], [None], None]),
        ([True, None], pa.bool_(), [True, None]),
    ],
)
def test_columns_become_json_values(read, values: list[Any], kind: pa.DataType, expected: list[Any]) -> None:
    table = pa.table({"value": pa.array(values, kind), "n": range(len(values))})
    assert [row.get("value") for row in read(table)] == expected


def test_batches_of_any_size(read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_rows, "BATCH_ROWS", 3)
    assert read(pa.table({"n": range(10)})) == [{"n": i} for i in range(10)]


def test_a_row_that_is_not_text_is_named(read) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.array([0, 1, 3, 4], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff\xfeb")]
    )
    with pytest.raises(DataError, match=r"rows\.parquet: row 2 cannot be read"):
        read(pa.table({"prompt": broken}))


def test_two_columns_with_one_name(read) -> None:
    with pytest.raises(DataError, match="two columns are named label"):
        read(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["label", "label"]))
