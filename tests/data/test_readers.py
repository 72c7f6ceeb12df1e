"""What a file is, by its content: compression, encodings, and files without rows."""

import gzip
import json
import pickle
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from kto_sweep.data.sources import read_rows
from kto_sweep.errors import DataError

ROWS = [{"prompt": f"é {i}", "completion": "ü", "label": i % 2 == 0} for i in range(50)]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(path: Path) -> list[object]:
    return [row.value for row in read_rows(str(path))[1]]


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)  # the time would be in the ids of tests


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def as_parquet() -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


def as_arrow(make=pa.ipc.new_file) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(ROWS)
    with make(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


CONTENTS = {
    "rows.jsonl": TEXT.encode(),
    "rows.parquet": as_parquet(),
    "rows.arrow": as_arrow(),
    "stream.arrow": as_arrow(pa.ipc.new_stream),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("compress", [None, gzip.compress, zstd])
@pytest.mark.parametrize("right_suffix", [True, False])
def test_the_content_decides(tmp_path: Path, name: str, compress, right_suffix: bool) -> None:
    suffix = {None: "", gzip.compress: ".gz", zstd: ".zst"}[compress]
    path = tmp_path / (name + suffix if right_suffix else "rows.jsonl")
    path.write_bytes(compress(CONTENTS[name]) if compress else CONTENTS[name])
    assert read(path) == ROWS


def test_gzip_files_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(TEXT.encode()) * 2)
    assert read(path) == ROWS * 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_encodings_with_a_byte_order_mark(tmp_path: Path, encoding: str, name: str) -> None:
    path = tmp_path / name
    path.write_text(TEXT if name == "rows.jsonl" else "prompt,completion\né,ü\n", encoding=encoding)
    assert read(path) == (ROWS if name == "rows.jsonl" else [{"prompt": "é", "completion": "ü"}])


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
def test_wide_encodings_without_a_mark_are_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(TEXT, encoding=encoding)
    with pytest.raises(DataError, match=f"{encoding} text without a byte-order mark") as caught:
        read(path)
    assert caught.value.hint == f"convert it: iconv -f {encoding} -t UTF-8 {path} > utf8.jsonl"


@pytest.mark.parametrize(
    ("lines", "place", "hint"),
    [
        ([b'{"a": "x"}', b'{"a": "caf\xe9"}'], ":2: not UTF-8 text (byte 0xe9)", "iconv -f WINDOWS-1252"),
        (['{"a": "é"}'.encode(), b'{"a": "caf\xe9"}'], ":2: not UTF-8 text", "the rest of the file is UTF-8"),
        (['{"a": "é\U0001f600"}'.encode()[:-4]], ":1: not UTF-8 text", "the rest of the file is UTF-8"),
    ],
)
def test_text_in_another_encoding(tmp_path: Path, lines: list[bytes], place: str, hint: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError) as caught:
        read(path)
    assert place in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("rows.csv", "iconv -f UTF-16LE -t UTF-8 {} > utf8.csv"),
        ("rows.jsonl.gz", "gzip -dc {} | iconv -f UTF-16LE -t UTF-8 > utf8.jsonl"),
    ],
)
def test_the_command_that_converts_fits_the_file(tmp_path: Path, name: str, command: str) -> None:
    path = tmp_path / name
    data = TEXT.encode("utf-16-le")
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.hint == f"convert it: {command.format(path)}"


def test_broken_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(TEXT.encode("utf-16")[:-1])
    with pytest.raises(DataError, match="broken UTF-16 text"):
        read(path)


def a_zip(*names: str) -> bytes:
    import io

    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return data.getvalue()


@pytest.mark.parametrize(
    ("content", "what", "hint"),
    [
        (a_zip("rows.jsonl"), "a zip archive", "unzip "),
        (a_zip("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook", "save it as CSV"),
        (a_zip("archive/data.pkl"), "a file of torch.save", "JSON lines"),
        (pickle.dumps(ROWS), "a Python pickle", "read_pickle"),
        (b"BZh91AY&SY", "compressed with bzip2", "bunzip2"),
        (b"\xfd7zXZ\x00\x00", "compressed with xz", "unxz"),
        (_gzip(_gzip(b"x")), "compressed twice", "gzip -d"),
        (_gzip(bytes(257) + b"ustar"), "a tar archive", "tar -xf"),
        (b"<!DOCTYPE html><html>", "an HTML page", "raw file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", "git lfs pull"),
        (b"\x07\x08\x90\x80\x01\x02", "neither text nor a parquet or Arrow file", "JSON lines"),
        (b"SQLite format 3\x00", "a SQLite database", "sqlite3"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_files_without_rows_are_named_as_what_they_are(
    tmp_path: Path, content: bytes, what: str, hint: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.message == f"{path}: {what}" or caught.value.message.startswith(f"{path}: {what},")
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("rows.jsonl.gz", _gzip(TEXT.encode())[:-30], "damaged or incomplete"),
        ("rows.jsonl.gz", _gzip(TEXT.encode())[:-8] + bytes(8), "damaged or incomplete"),
        ("rows.jsonl.zst", zstd(TEXT.encode())[:-9], "damaged or incomplete"),
        ("rows.parquet", CONTENTS["rows.parquet"][:-9], "not a complete parquet file"),
        ("rows.arrow", CONTENTS["rows.arrow"][:-9], "not a complete Arrow file"),
        ("rows.parquet", b"no parquet", "not a parquet file"),
        ("rows.arrow", b"", "not a Arrow file"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert what in caught.value.message
    assert "again" in caught.value.hint
