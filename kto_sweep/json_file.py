"""Small records on disk: one dataclass of plain fields as a JSON object in a file, replaced as a whole."""

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")


def write_whole(path: Path, text: str) -> None:
    """Put `text` in place of what was there; readers, and a power cut, find the old or the new.

    Raises OSError.
    """
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def write_record(path: Path, record: "DataclassInstance") -> None:
    """Put `record` in place of what was there. Raises OSError."""
    write_whole(path, json.dumps(asdict(record)) + "\n")


def read_record_of(kind: type[Record], path: Path) -> Record | None:
    """The record in `path`; None when there is none that is whole, each field of its type."""
    try:
        record = kind(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    whole = all(isinstance(getattr(record, each.name), each.type) for each in fields(record))  # type: ignore[arg-type]
    return record if whole else None
