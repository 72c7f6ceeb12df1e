"""A data set's rows as a table; the tokens of a large one are kept on disk and found again by content."""

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kto_sweep.data.dataset import DataSet
from kto_sweep.data.examples import (
    BadRow,
    DataNotes,
    DataSource,
    Places,
    Progress,
    counted_examples,
    read_examples,
)
from kto_sweep.data.kept_tokens import FOLDER, NOTES, prune
from kto_sweep.data.sources import content_files
from kto_sweep.data.table import RowTable
from kto_sweep.data.tokenise import TokenisedData, TokenNotes, measure, tokenise
from kto_sweep.json_file import parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORMAT = "kto-sweep tokens 1"
"""Changes with everything that turns rows into tokens: an older entry is then not found."""
_IDS, _COLUMNS = "ids.bin", "columns.npz"


def load_characters(
    source: DataSource,
    *,
    turn_characters: int = 0,
    progress: Progress = lambda _: None,
    keep_broken: bool = False,
) -> DataSet:
    """The rows without a tokenizer: lengths in characters, with `turn_characters` more for each turn.

    `keep_broken` as for read_examples. Raises DataError as it does.
    """
    notes, examples = read_examples(source, keep_broken=keep_broken)
    return DataSet(measure(counted_examples(examples, progress), turn_characters), notes, TokenNotes())


def load_tokens(
    source: DataSource,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    cache: Path | None = None,
    progress: Progress = lambda _: None,
    keep_broken: bool = False,
) -> DataSet:
    """The rows as token ids, not truncated; more than a few million tokens are kept below `cache`.

    `keep_broken` as for read_examples. Raises DataError as it does.
    """
    entry = None if cache is None else _entry(cache / FOLDER, source, tokenizer)
    if entry is not None and (stored := _read(entry)) is not None:
        return stored
    notes, examples = read_examples(source, keep_broken=keep_broken)
    if entry is None:
        data = tokenise(examples, tokenizer, progress)
        return DataSet(data.table, notes, data.notes)
    entry.parent.mkdir(parents=True, exist_ok=True)
    prune(entry.parent)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=entry.parent))
    try:
        data = tokenise(examples, tokenizer, progress, file=new / _IDS)
        if (new / _IDS).exists() and not notes.broken:  # training would find the entry, and not the error
            _write(new, notes, data)
            with suppress(OSError):  # another process was faster; this one's file stays open and valid
                new.rename(entry)
        return DataSet(data.table, notes, data.notes)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _entry(folder: Path, source: DataSource, tokenizer: "PreTrainedTokenizerBase") -> Path | None:
    """The folder of the tokens of these rows; None where the rows' content or the tokenizer has no hash."""
    files = content_files(source)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if files is None or backend is None:
        return None
    digest = hashlib.sha256(_FORMAT.encode())
    described = [
        *(type(tokenizer).__name__, str(tokenizer.chat_template), str(tokenizer.special_tokens_map)),
        *(str(file) for file in files),  # names in messages
    ]
    digest.update(json.dumps(described).encode())
    digest.update(hashlib.sha256(backend.to_str().encode()).digest())
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return folder / digest.hexdigest()[:32]


def _write(folder: Path, notes: DataNotes, data: TokenisedData) -> None:
    table = data.table
    columns = {
        name: value for name, value in vars(table).items() if isinstance(value, np.ndarray) and name != "ids"
    }
    np.savez(folder / _COLUMNS, allow_pickle=False, **columns)
    about = {
        "begin": table.begin,
        "data": {**vars(notes), "places": notes.places.files, "bad": _bad_as_lists(notes.bad)},
        "tokens": {**vars(data.notes), "bad": _bad_as_lists(data.notes.bad)},
    }
    (folder / NOTES).write_text(json.dumps(about), encoding="utf-8")


def _read(entry: Path) -> DataSet | None:
    """What `_write` wrote; None if there is no complete entry."""
    try:
        about = parse_json((entry / NOTES).read_text(encoding="utf-8"))
        with np.load(entry / _COLUMNS) as stored:
            columns = dict(stored)
        ids = np.memmap(entry / _IDS, dtype=np.int32, mode="r")
        table = RowTable(**columns, ids=ids, begin=about["begin"])
        data = DataSet(table, _data_notes(about["data"]), _token_notes(about["tokens"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if len(ids) != table.tokens:
        return None
    with suppress(OSError):
        os.utime(entry)
    return data


def _bad_as_lists(bad: Sequence[BadRow]) -> list[list[object]]:
    return [[row.line, row.why] for row in bad]


def _data_notes(stored: dict[str, Any]) -> DataNotes:
    places = Places([(before, file) for before, file in stored.pop("places")])
    bad = [BadRow(*row) for row in stored.pop("bad")]
    forms, ignored = Counter(stored.pop("forms")), Counter(stored.pop("ignored"))
    return DataNotes(**stored, places=places, bad=bad, forms=forms, ignored=ignored)


def _token_notes(stored: dict[str, Any]) -> TokenNotes:
    bad = [BadRow(*row) for row in stored["bad"]]
    return TokenNotes(bad, Counter(stored["unread"]), stored["ended"])
