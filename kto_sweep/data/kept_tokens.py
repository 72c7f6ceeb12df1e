"""The tokens of large data sets in the cache: listed, removed, and pruned when they are not used."""

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.json_file import parse_json

FOLDER = "tokens"
"""In the cache; one folder in it for each data set and tokenizer."""
NOTES = "notes.json"
"""The file of an entry that says what it is."""
_KEPT_SECONDS = 30 * 86400
"""An entry that is not used for this long is deleted when a new one is written."""


@dataclass(frozen=True)
class KeptTokens:
    """The tokens of one data set in the cache."""

    folder: Path
    data: str
    """The data set's name when they were written."""
    rows: int
    size: int
    """Bytes."""
    used: float
    """When they were last used, in seconds since 1970."""


def kept_tokens(cache: Path) -> list[KeptTokens]:
    """All complete entries, most recently used first."""
    entries = []
    for notes in (cache / FOLDER).glob(f"*/{NOTES}"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # removed meanwhile, or damaged
            about = parse_json(notes.read_text(encoding="utf-8"))["data"]
            folder = notes.parent
            size = sum(file.stat().st_size for file in folder.iterdir())
            entries.append(KeptTokens(folder, about["path"], about["rows"], size, folder.stat().st_mtime))
    return sorted(entries, key=lambda entry: -entry.used)


def remove_tokens(entry: KeptTokens) -> None:
    """Remove an entry; a process that has it mapped keeps its rows."""
    shutil.rmtree(entry.folder, ignore_errors=True)


def prune(folder: Path) -> None:
    """Delete entries that were not used for long, and what crashed processes left."""
    for entry in folder.iterdir():
        with suppress(OSError):
            if time.time() - entry.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)
