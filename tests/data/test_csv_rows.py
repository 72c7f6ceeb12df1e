from pathlib import Path

import pytest

from kto_sweep.data.sources import read_rows
from kto_sweep.errors import DataError

HEADER = "prompt,completion,label\n"


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str, name: str = "rows.csv") -> list[tuple[int, list[str]]]:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8", newline="")
        rows = list(read_rows(str(path))[1])
        assert all(list(row.value) == ["prompt", "completion", "label"] for row in rows)
        return [(row.number, list(row.value.values())) for row in rows]

    return read


def test_only_line_breaks_outside_quotes_end_a_row(read) -> None:
    cells = ["q\u2028r", "one\x85two\x0bthree", "true"]
    assert read(HEADER + ",".join(cells) + "\n") == [(2, cells)]
    assert read(HEADER + '"a\r\nb",c,true\r\n\r\nd,,false') == [
        (2, ["a\r\nb", "c", "true"]),
        (5, ["d", "", "false"]),
    ]


def test_cells_of_any_length(read) -> None:
    long = "x " * 70_000
    assert read(f"{HEADER}q,{long},true\n") == [(2, ["q", long, "true"])]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_the_header_shows_the_delimiter(read, delimiter: str, name: str) -> None:
    lines = [
        ["prompt", '"completion"', "label"],
        ["q; r" if delimiter != ";" else "q, r", '"a,;\tb"', "true"],
    ]
    text = "\n".join(delimiter.join(line) for line in lines)
    assert read(text, name) == [(2, [lines[1][0], "a,;\tb", "true"])]


def test_cells_stay_text(read) -> None:
    assert read(HEADER + '"[1, 2]","{""a"": 1}",1\n') == [(2, ["[1, 2]", '{"a": 1}', "1"])]


def test_blank_lines_and_a_byte_order_mark_before_the_header(read) -> None:
    assert read("\ufeff\n\n" + HEADER + "q,a,true\n") == [(4, ["q", "a", "true"])]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (HEADER + "q,a,true\nq,a, b,true\n", ":3: 4 cells, but the header has 3 columns", "quotes around"),
        (HEADER + "q,a,true\n\nq\n", ":4: 1 cell, but the header has 3 columns", "add the missing cells"),
        (",prompt,completion,label\n0,q,a,true\n", ":1: column 1 of the header has no name", "index=False"),
        ("prompt,label,label\nq,a,b\n", ":1: the header has the column label twice", "rename"),
        ("sep=;\n" + HEADER, ":1: a line for Excel", "delete the line"),
        (
            "prompt|completion|label\nq|a|true\n",
            ":1: the header has one column",
            "commas, semicolons or tabs",
        ),
        (HEADER + "q,a,true\nq\0,a,true\n", ":3: a NUL character", "tr -d"),
        (
            HEADER + 'q,a,true\nq,"a,true\nr,b,false\n',
            ":3: a quoted cell that begins in this row",
            'twice: ""',
        ),
        (HEADER + 'q,"a"b,true\n', ":2: broken quotes", "quote in it twice"),
        (HEADER.replace("\n", "\r") + "q,a,true\r", ":1: lines end with a carriage return", "tr '\\r'"),
    ],
)
def test_broken_rows_are_refused_with_their_line(read, text: str, message: str, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        read(text)
    assert f"rows.csv{message}" in caught.value.message
    assert hint in caught.value.hint


def test_json_named_csv_is_read_as_json(read) -> None:
    assert read('{"prompt": "q", "completion": "a", "label": "true"}\n') == [(1, ["q", "a", "true"])]
    with pytest.raises(DataError, match=r":2: broken JSON"):
        read('{"prompt": "q"}\n{"prompt"\n')


def test_an_empty_file_has_no_rows(read) -> None:
    assert read("") == read(HEADER) == []
