"""What the names in `dataset` and `eval_dataset` mean: files, folders, and data on the hub.

names --find_parts--> LocalFile, SavedDataset, HubData --rows--> raw rows
"""

import glob
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from kto_sweep.data.hub_data import HUB_FORMS, HubData, dataset_rows, parse_hub_name
from kto_sweep.data.raw_rows import RawRow
from kto_sweep.data.readers import COMPRESSED_SUFFIXES, FORMATS, format_suffix, read_file
from kto_sweep.errors import DataError, UsageError
from kto_sweep.parameter_types import describe_sources, source_names
from kto_sweep.paths import user_path
from kto_sweep.shipped_files import find_file
from kto_sweep.text import nearest, show


class SourceForm(NamedTuple):
    """One way to name data."""

    kind: str
    example: str | tuple[str, ...]
    """A value of `dataset`."""
    meaning: str


SOURCE_FORMS = (
    SourceForm("JSON lines", "rows.jsonl", "one object a line; also .ndjson"),
    SourceForm(
        "JSON", "rows.json", "a list of objects, also under the key data, train or rows; read as a whole"
    ),
    SourceForm("CSV", "rows.csv", "a header, then a row a line; comma, semicolon or tab between; also .tsv"),
    SourceForm("parquet", "rows.parquet", "a table; a ClassLabel becomes its name"),
    SourceForm("Arrow", "rows.arrow", "a table, as a file or a stream"),
    SourceForm("compressed", "rows.jsonl.gz", "any of these with .gz or .zst"),
    SourceForm(
        "several", ("a.jsonl", "b.parquet"), "one after the other; as options: --dataset a --dataset b"
    ),
    SourceForm("pattern", "shards/train-*.parquet", "every file that matches, by name"),
    SourceForm("folder", "shards", "every data file in it, by name; all have the same format"),
    SourceForm("saved dataset", "saved", "written by save_to_disk; of a DatasetDict the split train"),
    SourceForm("hub", "OWNER/NAME", "the split train of a dataset on the Hugging Face hub"),
    SourceForm("hub", "OWNER/NAME:CONFIG", "the split train of one of its configurations"),
    SourceForm("hub", "OWNER/NAME:CONFIG:SPLIT", "another split, as in load_dataset"),
    SourceForm("hub", "OWNER/NAME::SPLIT", "a split of its default configuration"),
    SourceForm("hub", "OWNER/NAME:data/rows.jsonl", "one of its files, or a pattern for several"),
)
"""What `dataset` and `eval_dataset` accept."""

_METADATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""JSON files of `datasets` that have no rows."""
_SPLIT_WORD = re.compile(r"(?:^|[-_.])(train|test|eval|dev|val|valid|validation)(?:ing|uation)?(?=[-_.]|$)")


class DataPart(Protocol):
    """Something that has rows."""

    @property
    def source(self) -> str:
        """Its name in messages."""

    def rows(self) -> Iterator[RawRow]:
        """Its rows. Raises DataError."""


@dataclass(frozen=True)
class LocalFile:
    """One data file."""

    path: Path

    @property
    def source(self) -> str:
        """The path."""
        return str(self.path)

    def rows(self) -> Iterator[RawRow]:
        """The file's rows."""
        return read_file(self.path, self.source)


@dataclass(frozen=True)
class SavedDataset:
    """The folder of a dataset that `datasets` saved with save_to_disk."""

    path: Path

    @property
    def source(self) -> str:
        """The path."""
        return str(self.path)

    def rows(self) -> Iterator[RawRow]:
        """The dataset's rows."""
        import datasets  # slow to import, rarely needed

        try:
            dataset = datasets.load_from_disk(str(self.path))
        except Exception as error:  # a dozen unrelated types
            raise DataError(
                f"{self.path}: not a complete saved dataset: {error}", hint="save it again with save_to_disk"
            ) from error
        return dataset_rows(dataset, self.source)


def read_rows(
    source: str | Sequence[str], base_dirs: Sequence[Path] = (), *, keep_broken: bool = False
) -> tuple[str, Iterator[RawRow]]:
    """The name for messages, and the rows, of one source or several (SOURCE_FORMS).

    Local files may be below one of `base_dirs`, or be a shipped example.
    Raises DataError: no such file or dataset, or the same twice; the iterator raises it for a row that cannot
    be read, with `keep_broken` only if the rows after it cannot be read either.
    """
    parts = find_parts(source, base_dirs)
    names = source_names(source)
    name = parts[0].source if len(parts) == 1 else describe_sources(names)
    rows = (row for part in parts for row in part.rows())
    return name, rows if keep_broken else map(_require_whole, rows)


def _require_whole(row: RawRow) -> RawRow:
    """The row. Raises the DataError of a broken one."""
    if isinstance(row.value, DataError):
        raise row.value
    return row


def find_parts(source: str | Sequence[str], base_dirs: Sequence[Path] = ()) -> list[DataPart]:
    """The files and datasets of one source or several, in order. Raises DataError as `read_rows`."""
    parts: list[DataPart] = []
    named: dict[object, str] = {}
    for name in source_names(source):
        for part in _parts_of(name, base_dirs):
            key = _identity(part)
            if key in named:
                again = f"by {named[key]} and by {name}" if named[key] != name else "twice"
                raise DataError(f"{part.source} is named {again}", hint="name it once")
            named[key] = name
            parts.append(part)
    return parts


def content_files(source: str | Sequence[str], base_dirs: Sequence[Path] = ()) -> list[Path] | None:
    """The files that hold the rows of a source; None if some rows are on the hub. Raises DataError."""
    files: list[Path] = []
    for part in find_parts(source, base_dirs):
        if isinstance(part, LocalFile):
            files.append(part.path)
        elif isinstance(part, SavedDataset):
            files += sorted(file for file in part.path.iterdir() if file.is_file())
        else:
            return None
    return files


def require_apart(dataset: str | Sequence[str], eval_dataset: str | Sequence[str]) -> None:
    """Raise DataError if a file or dataset in `eval_dataset` is also in `dataset`, or either is not there."""
    trained_on = {_identity(part) for part in find_parts(dataset)}
    for part in find_parts(eval_dataset):
        if _identity(part) in trained_on:
            raise DataError(
                f"{part.source} is both in dataset and in eval_dataset",
                hint="name other rows, or remove eval_dataset: eval_fraction holds out a share of dataset",
            )


def _identity(part: DataPart) -> object:
    """Equal for two names of the same rows."""
    return replace(part, source="") if isinstance(part, HubData) else os.path.realpath(part.source)


def find_local(source: str, base_dirs: Sequence[Path] = ()) -> list[Path]:
    """The file or folder of `source`, or the files that match it; empty if nothing of that name is here.

    Looks in the current folder, below each of `base_dirs`, and among the shipped examples.
    Raises DataError for what cannot be a path here: too long, ~USER without such a user.
    """
    try:
        path = user_path(source)
        for candidate in [path, *(base / path for base in base_dirs)]:
            if candidate.exists():
                return [candidate]
            if {"*", "?"} & set(source) and (files := _matching(candidate)):
                return files
        shipped = find_file(source)
    except OSError as error:
        raise DataError(f"{show(source)}: {error.strerror}", hint="check the path") from error
    except UsageError as error:
        raise DataError(error.message, hint=error.hint) from error
    return [shipped] if shipped is not None else []


def _matching(pattern: Path) -> list[Path]:
    return [Path(file) for file in sorted(glob.glob(str(pattern))) if Path(file).is_file()]  # noqa: PTH207


def _parts_of(source: str, base_dirs: Sequence[Path]) -> list[DataPart]:
    local = find_local(source, base_dirs)
    if len(local) == 1 and local[0].is_dir():
        try:
            return _parts_of_folder(local[0])
        except OSError as error:
            why = error.strerror or error
            raise DataError(f"{local[0]}: {why}", hint="check the folder's permissions") from error
    if local:
        return [_local_file(path) for path in local]
    hub = parse_hub_name(source)
    if hub is not None:
        in_folder = hub.file and Path(hub.name, hub.file)
        return [LocalFile(in_folder)] if in_folder and in_folder.is_file() else [hub]
    raise DataError(f"{source}: no such data file", hint=_hint_for_missing(source, base_dirs))


def _local_file(path: Path) -> LocalFile:
    if not path.is_file():
        raise DataError(
            f"{path}: not a regular file", hint="write its rows to a file: they are read more than once"
        )
    return LocalFile(path)


def _parts_of_folder(folder: Path) -> list[DataPart]:
    """The saved dataset or the files of a folder. Raises DataError if it is unclear which of them."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in folder.iterdir() if (child / "state.json").is_file())
        if "train" in splits:
            return [SavedDataset(folder / "train")]
        saved = ", ".join(str(folder / split) for split in splits)
        raise DataError(f"{folder}: a saved DatasetDict without a split train", hint=f"name a split: {saved}")
    if (folder / "state.json").is_file():
        return [SavedDataset(folder)]
    files = data_files(folder)
    below = sorted(
        child.name
        for child in folder.iterdir()
        if child.is_dir() and not child.name.startswith(".") and _has_data(child)
    )
    if below:
        subfolders = ", ".join(str(folder / name) for name in below[:4])
        also = "has data files, and so have folders in it" if files else "has data only in folders in it"
        own = f"{_pattern(folder, files)}, or " if files else ""
        raise DataError(f"{folder}: {also}: {', '.join(below[:4])}", hint=f"name {own}{subfolders}")
    if not files:
        others = sorted(child.name for child in folder.iterdir())[:4]
        inside = f"only {', '.join(others)}" if others else "it is empty"
        raise DataError(
            f"{folder}: a folder without data files ({inside})",
            hint=f"name a file or folder with rows: {', '.join(FORMATS)}, also with .gz or .zst",
        )
    _check_one_set(folder, files)
    return [LocalFile(file) for file in files]


def data_files(folder: Path) -> list[Path]:
    """The data files directly in a folder, by name."""
    if not folder.is_dir():
        return []
    return sorted(
        child
        for child in folder.iterdir()
        if format_suffix(child.name)
        and child.is_file()
        and child.name not in _METADATA
        and not child.name.startswith((".", "_"))
    )


def _has_data(folder: Path) -> bool:
    return (folder / "state.json").is_file() or bool(data_files(folder))


def _check_one_set(folder: Path, files: Sequence[Path]) -> None:
    """Raise DataError for files that are not the parts of one set of rows."""
    formats: dict[str, list[Path]] = {}
    splits: dict[str, list[Path]] = {}
    plain: dict[str, Path] = {}
    for file in files:
        formats.setdefault(FORMATS[format_suffix(file.name)], []).append(file)
        word = _SPLIT_WORD.search(file.name.lower())
        splits.setdefault(word[1] if word else "", []).append(file)
        name = file.name
        for suffix in COMPRESSED_SUFFIXES:
            name = name.removesuffix(suffix)
        if name in plain:
            raise DataError(
                f"{folder}: {plain[name].name} and {file.name} seem to be the same rows",
                hint=f"remove one of the two, or name one: {plain[name]}",
            )
        plain[name] = file
    if len(formats) > 1:
        patterns = ", or ".join(_pattern(folder, members) for members in formats.values())
        raise DataError(f"{folder}: files of several formats: {', '.join(formats)}", hint=f"name {patterns}")
    if len(splits) > 1:
        held_out = [word for word in splits if word not in {"", "train"}]
        train = _pattern(folder, splits.get("train") or splits.get("") or files, "train")
        hint = f"dataset: {train}"
        if held_out and "train" in splits:
            hint += f", and eval_dataset: {_pattern(folder, splits[held_out[0]], held_out[0])}"
        raise DataError(
            f"{folder}: files of several splits: {', '.join(word or 'others' for word in splits)}", hint=hint
        )


def _pattern(folder: Path, files: Sequence[Path], word: str = "") -> str:
    """What names these files of a folder: the only one, or a pattern with `word` and their suffix."""
    if len(files) == 1:
        return str(files[0])
    suffixes = "".join(files[0].suffixes[-2:] if files[0].suffix in COMPRESSED_SUFFIXES else files[0].suffix)
    return shlex.quote(str(folder / (f"*{word}*{suffixes}" if word else f"*{suffixes}")))


def _hint_for_missing(source: str, base_dirs: Sequence[Path]) -> str:
    """The hint for a name that does not exist."""
    if "://" in source:
        return _hint_for_url(source)
    if source.count("/") == 1 and re.search(r"[\[\]:]", source) and not format_suffix(source):
        return f"on the hub, name {HUB_FORMS}"
    file = user_path(source)
    names: dict[str, str] = {}
    for folder in [file.parent, *(base / file.parent for base in base_dirs), Path("examples"), Path()]:
        for child in data_files(folder):
            names.setdefault(child.name, str(child))
    if near := nearest(file.name, names):
        return f"did you mean {names[near]}?"
    if names:
        return f"data files here: {', '.join(list(names.values())[:3])}"
    return f"name a file or folder with rows, or a dataset on the hub: {HUB_FORMS}"


def _hint_for_url(source: str) -> str:
    hub = re.match(
        r"(?:https?://huggingface\.co/datasets|hf://datasets)/([\w-][\w.-]*/[\w-][\w.-]*)(.*)", source
    )
    if hub is None:
        if source.startswith("file://"):
            return f"name it {source.removeprefix('file://')}"
        fetch = f"curl -LO {shlex.quote(source)}" if source.startswith("http") else "copy it here"
        return f"{fetch}, then name the file"
    file = re.sub(r"^/(?:(?:blob|resolve|tree|raw|viewer)/[^/]+/?)?", "", hub[2].partition("?")[0])
    return f"name it {hub[1]}:{file}" if format_suffix(file) else f"name it {hub[1]}"


def join_source(source: str | None, file: str) -> str:
    """The name of `file` in `source`, a dataset on the hub or a folder; without `source`, just the file."""
    if source is None:
        return file
    hub = parse_hub_name(source)
    return f"{source}:{file}" if hub is not None and not Path(source).is_dir() else str(Path(source, file))
