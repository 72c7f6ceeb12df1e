"""Names what a file is that has no rows for training, and what to do with it."""

import shlex
from typing import NamedTuple

from kto_sweep.errors import DataError


class FileKind(NamedTuple):
    """A kind of file, known by its first bytes."""

    magic: bytes
    what: str
    hint: str
    """{file}: the file's name for a shell."""
    offset: int = 0
    """Of `magic`, in bytes."""


_TO_JSON = "in Python: pandas.{function}('{file}').to_json('rows.jsonl', orient='records', lines=True)"
_SAVE_AS_CSV = "open it and save it as CSV UTF-8 (.csv)"
_DOWNLOAD_RAW = "download the raw file: on the hub, its download link"

KINDS = (
    FileKind(b"\x1f\x8b", "compressed twice", "decompress it once: gzip -d {file}"),
    FileKind(b"\x28\xb5\x2f\xfd", "compressed twice", "decompress it once: zstd -d {file}"),
    FileKind(b"BZh", "compressed with bzip2", "decompress it: bunzip2 {file}"),
    FileKind(b"\xfd7zXZ\x00", "compressed with xz", "decompress it: unxz {file}"),
    FileKind(b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it: 7z x {file}"),
    FileKind(b"Rar!", "a RAR archive", "unpack it: unrar x {file}"),
    FileKind(b"ustar", "a tar archive", "unpack it: tar -xf {file}", 257),
    FileKind(b"\xd0\xcf\x11\xe0", "an Excel workbook", _SAVE_AS_CSV),
    FileKind(b"%PDF", "a PDF document", "use the data that it was made from"),
    FileKind(b"\x93NUMPY", "a NumPy array", "save its rows as JSON lines"),
    FileKind(b"\x89HDF", "an HDF5 file", _TO_JSON.replace("{function}", "read_hdf")),
    FileKind(b"FEA1", "a Feather file of version 1", _TO_JSON.replace("{function}", "read_feather")),
    FileKind(b"ORC", "an ORC file", _TO_JSON.replace("{function}", "read_orc")),
    FileKind(b"Obj\x01", "an Avro file", "save its rows as JSON lines or parquet"),
    FileKind(
        b"SQLite format 3", "a SQLite database", "save a table: sqlite3 -csv -header {file} 'select ...'"
    ),
    FileKind(
        b"version https://git-lfs", "a Git LFS pointer, not the data", "in its repository: git lfs pull"
    ),
    FileKind(b"<!DOCTYPE html", "an HTML page", _DOWNLOAD_RAW),
    FileKind(b"<!doctype html", "an HTML page", _DOWNLOAD_RAW),
    FileKind(b"<html", "an HTML page", _DOWNLOAD_RAW),
)


def require_text(head: bytes, name: str) -> None:
    """Raise DataError, naming what it is, for a file that cannot be text; `head`: its first bytes."""
    kind = _zip_kind(head) if head.startswith(b"PK\x03\x04") else _pickle_kind(head)
    for known in KINDS:
        if head.startswith(known.magic, known.offset):
            kind = known
    if kind is not None:
        hint = kind.hint.replace("{file}", shlex.quote(name))
        raise DataError(f"{name}: {kind.what}", hint=hint)


def _zip_kind(head: bytes) -> FileKind:
    if b"xl/" in head or b"[Content_Types].xml" in head:
        return FileKind(b"", "an Excel workbook", _SAVE_AS_CSV)
    if b"data.pkl" in head:
        return FileKind(b"", "a file of torch.save", "save its rows as JSON lines: json.dumps(row) for each")
    return FileKind(b"", "a zip archive", "unpack it: unzip {file}")


def _pickle_kind(head: bytes) -> FileKind | None:
    """A pickle begins with byte 0x80 and its protocol, which is not text in any encoding in use."""
    if len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return FileKind(b"", "a Python pickle", _TO_JSON.replace("{function}", "read_pickle"))
    return None
