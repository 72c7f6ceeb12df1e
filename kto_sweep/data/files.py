"""Finds a data file and reads its raw rows from JSON lines, JSON, CSV, parquet or the hub.

A raw row is any JSON value with its line; formats.py parses it.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.errors import DataError
from kto_sweep.shipped_files import find_file
from kto_sweep.text import nearest

FORMATS_HINT = (
    'one JSON object a line: {"conversations": [{"role": "user", "content": "..."}, '
    '{"role": "assistant", "content": "..."}], "label": true}'
)
"""The hint of every error about the format of a row."""

DATA_SUFFIXES = frozenset({".jsonl", ".json", ".ndjson", ".csv", ".parquet"})
_HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(:(?P<file>[^:]+))?")


@dataclass(frozen=True)
class RawRow:
    """One row before it is parsed."""

    number: int
    """Line in a text file, else position; counted from 1."""
    value: object
    """A JSON value; an object in every usable row."""
    file: str = ""


def source_files(source, base_dirs=()):
    path = find_data(source, base_dirs)
    return None if path is None else [path]


def read_rows(source: str, base_dirs: Sequence[Path] = ()) -> tuple[str, Iterator[RawRow]]:
    """The name for messages, and the rows, of `source`: a file (see `find_data`), or data on the hub.

    On the hub it is a dataset, `OWNER/NAME`, or one of its files, `OWNER/NAME:FILE`.
    Raises DataError: no such file or dataset; the iterator raises it for a row that cannot be read.
    """
    path = find_data(source, base_dirs)
    if path is not None:
        return str(path), _read_file(path)
    if is_hub_id(source):
        return source, _read_hub(source)
    raise DataError(f"{source}: no such data file", hint=_nearest(source, base_dirs))


def find_data(source: str, base_dirs: Sequence[Path] = ()) -> Path | None:
    """The file of `source`: as given, below one of `base_dirs`, or a shipped example; None if there is none.

    Raises DataError when it is a folder.
    """
    file = Path(source).expanduser()
    for path in [file, *(base / file for base in base_dirs)]:
        if path.is_file():
            return path
        if path.is_dir():
            files = sorted(child.name for child in path.iterdir() if child.suffix in DATA_SUFFIXES)
            inside = (
                f"name a file in it: {path / files[0]}"
                if files
                else "it has no .jsonl, .csv or .parquet file"
            )
            raise DataError(f"{source} is a folder, not a data file", hint=inside)
    return find_file(source)


def _read_file(path: Path) -> Iterator[RawRow]:
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix == ".csv":
        return _read_csv(path)
    return _read_json(path)


def _read_text(path: Path) -> str:
    """The file's text without a byte-order mark."""
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", hint="check the file's permissions") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 text (byte 0x{data[error.start]:02x})",
            hint=f"convert it: iconv -f LATIN1 -t UTF-8 {path} > utf8.jsonl",
        ) from error


def _read_json(path: Path) -> Iterator[RawRow]:
    """Rows of JSON lines, or of one JSON list; detected by content, because suffixes are often wrong."""
    text = _read_text(path)
    if text.lstrip().startswith("["):
        try:
            items = json.loads(text)
        except json.JSONDecodeError as error:
            if path.suffix == ".json":
                raise DataError(
                    f"{path}:{error.lineno}: broken JSON: {error.msg} (column {error.colno})",
                    hint=f"fix line {error.lineno}; the file is one JSON list of objects",
                ) from error
        else:
            yield from (RawRow(number, item) for number, item in enumerate(items, start=1))
            return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield RawRow(number, _parse_line(path, number, line))


def _parse_line(path: Path, number: int, line: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{number}: broken JSON: {error.msg} (column {error.colno})",
            hint=f"fix or delete line {number}; a row is {FORMATS_HINT}",
        ) from error


def _read_csv(path: Path) -> Iterator[RawRow]:
    """Rows of a CSV file with a header; cells with a JSON list or object are parsed."""
    reader = csv.DictReader(_read_text(path).splitlines(keepends=True))
    number = 2  # the header is line 1
    for row in reader:
        yield RawRow(number, {name: _cell(text) for name, text in row.items() if name is not None})
        number = reader.line_num + 1  # a quoted cell may span lines; a row's number is its first line


def _cell(text: str | None) -> object:
    if text is None or not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _read_parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa  # type: ignore[import-untyped]  # slow to import, rarely needed
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file: {error}", hint="download it again") from error
    yield from (RawRow(number, row) for number, row in enumerate(rows, start=1))


def is_hub_id(source: str) -> bool:
    """Whether `source` can be a dataset on the hub, OWNER/NAME, or one of its files, OWNER/NAME:FILE."""
    match = _HUB_ID.fullmatch(source)
    return match is not None and (match["file"] is not None or Path(source).suffix not in DATA_SUFFIXES)


def join_source(source: str | None, file: str) -> str:
    """The name of `file` in `source`, a dataset on the hub or a folder; without `source`, just the file."""
    if source is None:
        return file
    return f"{source}:{file}" if is_hub_id(source) and not Path(source).is_dir() else str(Path(source, file))


def _read_hub(source: str) -> Iterator[RawRow]:
    """Rows of the `train` split of a dataset on the Hugging Face hub, or of one of its files."""
    import datasets  # slow to import, rarely needed

    match = _HUB_ID.fullmatch(source)
    assert match is not None
    try:
        rows = datasets.load_dataset(match["name"], data_files=match["file"], split="train")
    except Exception as error:  # the hub client raises a dozen unrelated types
        reason = str(error).strip().splitlines()
        raise DataError(
            f"{source}: not a local file, and loading it from the hub failed: "
            f"{reason[0] if reason else error!r}",
            hint="check the name; for a gated or private dataset, request access and set HF_TOKEN",
        ) from error
    yield from (RawRow(number, dict(row)) for number, row in enumerate(rows, start=1))


def _nearest(source: str, base_dirs: Sequence[Path]) -> str:
    """The hint for a name that does not exist."""
    file = Path(source).expanduser()
    names: dict[str, str] = {}
    for folder in [file.parent, *(base / file.parent for base in base_dirs), Path("examples"), Path()]:
        if folder.is_dir():
            for child in sorted(folder.iterdir()):
                if child.suffix in DATA_SUFFIXES:
                    names.setdefault(child.name, str(child))
    if near := nearest(file.name, names):
        return f"did you mean {names[near]}?"
    if names:
        return f"data files here: {', '.join(list(names.values())[:3])}"
    return "use the path of a .jsonl file, or a dataset on the hub (owner/name)"
