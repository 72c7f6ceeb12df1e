"""Reads the rows of one file; its content decides what it is, because suffixes are often wrong.

bytes --decompress--> magic bytes --> table_rows (parquet, Arrow), or file_kinds (what is not a data file)
                              `-----> text_lines --> json_rows, csv_rows
"""

import codecs
import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

from kto_sweep.data.csv_rows import read_csv
from kto_sweep.data.file_kinds import require_text
from kto_sweep.data.json_rows import read_json
from kto_sweep.data.raw_rows import RawRow
from kto_sweep.data.table_rows import read_arrow_file, read_arrow_stream, read_parquet
from kto_sweep.data.text_lines import find_encoding, read_lines
from kto_sweep.errors import DataError

FORMATS = {
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".json": "JSON",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".parquet": "parquet",
    ".arrow": "Arrow",
}
"""The formats of data files, by suffix."""
COMPRESSED_SUFFIXES = (".gz", ".zst")
HEAD_BYTES = 4096
"""Bytes at the beginning of a file that decide what it is."""

_Compression = Literal["gzip", "zstd"] | None
_TABLES: dict[bytes, Callable[[BinaryIO, str], Iterator[RawRow]]] = {
    b"PAR1": read_parquet,
    b"ARROW1": read_arrow_file,
    b"\xff\xff\xff\xff": read_arrow_stream,
}
"""Readers of binary tables, by the first bytes of a file."""


def format_suffix(name: str) -> str:
    """The suffix of a data file, without .gz or .zst; empty for the name of another file.

    >>> format_suffix("rows.jsonl.gz"), format_suffix("README.md")
    ('.jsonl', '')
    """
    path = Path(name)
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSED_SUFFIXES else path.suffix
    return suffix if suffix in FORMATS else ""


def read_file(path: Path, name: str) -> Iterator[RawRow]:
    """The rows of a file, in bounded memory unless it is one JSON document; `name` is its name in messages.

    Raises DataError: unreadable, damaged, not a data file, or a row that cannot be read.
    """
    try:
        compression = _compression(path)
        with _opened(path, compression) as stream:
            head = stream.read(HEAD_BYTES)
        with _opened(path, compression) as stream:
            for magic, read in _TABLES.items():
                if head.startswith(magic):
                    with _seekable(stream, compression) as table:
                        yield from read(table, name)
                    return
            require_text(head, name)
            lines = read_lines(stream, find_encoding(head, name), name)
            yield from _text_reader(head, path, name)(lines, name)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{name}: {error.strerror}", hint="check the file and its permissions") from error
        raise DataError(
            f"{name}: damaged or incomplete: {error}", hint="download or write it again"
        ) from error


def _text_reader(head: bytes, path: Path, name: str) -> Callable[[Iterator[str], str], Iterator[RawRow]]:
    """The reader of a text file. Raises DataError for text in a file that is named as a table."""
    suffix = format_suffix(path.name)
    begins_as_json = head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in {b"{", b"["}
    if suffix in {".parquet", ".arrow"} and not begins_as_json:
        raise DataError(f"{name}: not a {FORMATS[suffix]} file", hint="download or write it again")
    return read_csv if suffix in {".csv", ".tsv"} and not begins_as_json else read_json


def _compression(path: Path) -> _Compression:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic.startswith(b"\x1f\x8b"):
        return "gzip"
    return "zstd" if magic == b"\x28\xb5\x2f\xfd" else None


@contextmanager
def _opened(path: Path, compression: _Compression) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed."""
    if compression is None:
        with path.open("rb") as file:
            yield file
    elif compression == "gzip":
        with gzip.open(path) as plain:  # unlike pyarrow's, it checks the checksum
            yield cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, plain)))
    else:
        import pyarrow as pa  # slow to import, rarely needed

        with pa.CompressedInputStream(str(path), "zstd") as plain:
            yield cast(BinaryIO, io.BufferedReader(plain))


@contextmanager
def _seekable(stream: BinaryIO, compression: _Compression) -> Iterator[BinaryIO]:
    """A stream whose end can be read first, as a table's must: decompressed to a temporary file if needed."""
    if compression is None:
        yield stream
        return
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(stream, file)
        file.seek(0)
        yield cast(BinaryIO, file)
