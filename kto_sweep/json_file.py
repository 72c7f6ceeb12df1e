"""Small records on disk: a dataclass with plain fields as a JSON object in one file, replaced atomically."""

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")


def parse_json(text: str | bytes) -> Any:
    """The JSON value in `text`. Raises ValueError alone, also for values nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def write_atomic(path: Path, text: str) -> None:
    """Replace the file's content atomically: readers see the old or the new text, even after a power cut.

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
    """Replace the record in `path` atomically. Raises OSError."""
    write_atomic(path, json.dumps(asdict(record)) + "\n")


def read_record_file(kind: type[Record], path: Path) -> Record | None:
    """The record in `path`; None if the file is missing, damaged, or has a field of another type."""
    try:
        record = kind(**parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    valid = all(isinstance(getattr(record, field.name), field.type) for field in fields(record))  # type: ignore[arg-type]
    return record if valid else None
