import json
from pathlib import Path

import pytest

from kto_sweep.data.json_rows import MAX_DEPTH
from kto_sweep.data.raw_rows import RawRow
from kto_sweep.data.sources import read_rows
from kto_sweep.errors import DataError

ROW = {"prompt": "q", "completion": "a", "label": True}
OTHER = {"prompt": "r", "completion": "b", "label": False}


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str, name: str = "rows.jsonl") -> list[tuple[int, object]]:
        path = tmp_path / name
        path.write_text(text)
        rows = list(read_rows(str(path))[1])
        assert {row.file for row in rows} <= {str(path)}
        return [(row.number, row.value) for row in rows]

    return read


def test_a_row_has_its_line_and_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{json.dumps(ROW)}\r\n\n{json.dumps(OTHER)}")
    name, rows = read_rows(str(path))
    assert name == str(path)
    assert list(rows) == [RawRow(2, ROW, str(path)), RawRow(4, OTHER, str(path))]


def test_byte_order_marks_of_joined_files(read) -> None:
    lines = f"\ufeff{json.dumps(ROW)}\n"
    assert read(lines * 2) == [(1, ROW), (2, ROW)]


def test_only_a_line_feed_ends_a_line(read) -> None:
    row = ROW | {"completion": "a\u2028b\x85c\x0bd"}
    assert read(json.dumps(row, ensure_ascii=False) + "\n" + json.dumps(OTHER)) == [(1, row), (2, OTHER)]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("key", [None, "data", "train", "rows", "conversations"])
def test_a_document_with_a_list_of_rows(read, name: str, indent: int | None, key: str | None) -> None:
    document = [ROW, OTHER] if key is None else {"version": 1, key: [ROW, OTHER]}
    assert read("\n" + json.dumps(document, indent=indent), name) == [(1, ROW), (2, OTHER)]


def test_objects_that_span_lines(read) -> None:
    row = {"messages": [{"role": "user", "content": "q"}], "label": True}
    text = json.dumps(row, indent=1)
    assert read(text) == [(1, row)]
    assert read(f"{text}\n\n{json.dumps(ROW, indent=1)}\n") == [(1, row), (text.count("\n") + 3, ROW)]


def test_one_row_is_not_taken_for_a_document_of_rows(read) -> None:
    row = {"messages": [{"role": "user", "content": "q"}], "tools": [{"name": "f"}], "label": True}
    assert read(json.dumps(row)) == [(1, row)]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("9" * 5000, "a number with thousands of digits"),
        ("[" * 100_000 + "]" * 100_000, f"nested more than {MAX_DEPTH} deep"),
        ('{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH, f"nested more than {MAX_DEPTH} deep"),
        ("NaN", "NaN is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        ('{"a": 1, "a": 2}', 'an object has the key "a" twice'),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_absurd_json_is_named_with_its_line(read, value: str, what: str, whole: bool) -> None:
    bad = f'{{"prompt": "q", "id": {value}}}'
    text = f"{json.dumps(ROW)}\n\n{bad}\n"
    if whole:
        text = json.dumps(ROW)[:-1] + "\n}\n" + bad
    with pytest.raises(DataError) as caught:
        read(text)
    assert "rows.jsonl:3: " in caught.value.message
    assert what in caught.value.message


def test_many_brackets_that_are_not_nested_are_a_row(read) -> None:
    row = ROW | {"completion": "[{" * 500, "list": [[1]] * 200}
    assert read(json.dumps(row)) == [(1, row)]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('{"a": 1}\n{"a": \n', ":2: broken JSON", "fix or delete line 2"),
        ('{"a": 1}, \n{"a": 1}\n', ":1: broken JSON", "remove the comma at the end of line 1"),
        ("{'prompt': 'q'}\n", ":1: broken JSON", "json.dumps(row)"),
        ("prompt,completion,label\nq,a,true\n", ":1: broken JSON", "mv "),
        ('[\n{"a": 1},\n{"a" 2}\n]', ":3: broken JSON", "the value that begins in line 1"),
        ('[\n{"a": 1},\n', ":3: broken JSON", "the value that begins in line 1"),
        ('{"a": 1}{"a": 1}', ":1: broken JSON", "jq -c . "),
        ('{"prompt": ["q"], "label": [true]}', "columns or groups, not rows", "orient='records'"),
        ('{"prompt": {"0": "q"}, "label": {"0": true}}', "columns or groups", "orient='records'"),
        ('{"0": {"prompt": "q"}, "1": {"prompt": "r"}}', "columns or groups", "orient='records'"),
        ('{"columns": ["prompt"], "index": [0], "data": [["q"]]}', "columns or groups", "orient='records'"),
        ('{"train": [{"a": 1}], "test": [{"a": 1}]}', "several lists of rows: train, test", ".train[]"),
    ],
)
def test_broken_text_is_refused_with_what_to_do(read, text: str, message: str, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        read(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_an_empty_file_has_no_rows(read) -> None:
    assert read("") == read("\n \n") == read("[]") == []
