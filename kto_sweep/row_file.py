"""Files that grow by whole lines: a run's rows as JSON lines, and its console log."""

import contextlib
import errno
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kto_sweep.json_file import parse_json


class LineFile:
    """A text file that holds whole lines only, whatever interrupts a write. Thread-safe.

    A file that is removed or moved, such as with its folder, is written again by the next line.
    """

    def __init__(self, path: Path) -> None:
        """Continues the file at `path`, or creates it. Raises OSError."""
        self._path = path
        self._lock = threading.RLock()
        self._unwritten: list[str] = []
        self.was_removed = False
        """Whether a user removed or moved the file meanwhile; it was then written again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        self._end = self._file.seek(0, os.SEEK_END)

    def append(self, text: str) -> None:
        """Add one or more lines. Raises OSError, for example on a full disk; the file is then as before."""
        data = f"{text}\n".encode()
        with self._lock:
            self._restore()
            try:
                if self._file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(self._end)  # half a line would damage the next one
                raise
            self._end += len(data)

    def _restore(self) -> None:
        """Write the file again if it is not at its path. Raises OSError; the lines are then kept."""
        if self._path.exists():
            return
        self._file.seek(0)  # the open file still has the lines
        lines = self._file.read()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.open("a+b", buffering=0)
        try:
            if new.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        except OSError:
            new.close()
            self._path.unlink(missing_ok=True)
            raise
        self._file.close()
        self._file, self._end, self.was_removed = new, len(lines), True

    def write(self, line: str) -> None:
        """Add a line if possible; lines that a full disk refuses are added before the next one."""
        with self._lock, contextlib.suppress(OSError):
            self._unwritten.append(line)
            self.append("\n".join(self._unwritten))
            self._unwritten.clear()

    def truncate(self, size: int = 0) -> None:
        """Keep the first `size` bytes."""
        with self._lock:
            self._file.truncate(size)
            self._end = size

    def close(self) -> None:
        """Close the file; lines not written yet are lost."""
        with contextlib.suppress(OSError):  # a network file system may report a full disk only now
            self._file.close()


class RowFile(LineFile):
    """JSON lines, one for each optimizer step: {"step": 1, "loss": 0.5, ...}. Lines of one step are one row.

    Rows count up to the first line that is damaged, incomplete, or of an earlier step: what follows it is
    logged again.
    """

    def append_row(self, step: int, values: Mapping[str, Any]) -> None:
        """Add the row of `step`. Raises OSError as `append` does."""
        self.append(_line(step, values))

    def write_row(self, step: int, values: Mapping[str, Any]) -> None:
        """Add the row of `step` if possible, as `write` does."""
        self.write(_line(step, values))

    def rows(self, last: int) -> dict[int, dict[str, Any]]:
        """The rows up to step `last`, by step."""
        rows, _ = self._read(last)
        return rows

    def keep(self, last: int) -> dict[int, dict[str, Any]]:
        """The rows up to step `last`; all other lines are removed from the file."""
        with self._lock:
            rows, end = self._read(last)
            self.truncate(end)
        return rows

    def _read(self, last: int) -> tuple[dict[int, dict[str, Any]], int]:
        """The rows, and the size in bytes of their lines."""
        rows: dict[int, dict[str, Any]] = {}
        end, step = 0, 1
        for row, size in _parsed(self._path):
            if row is None or not step <= row["step"] <= last:
                break
            step = row.pop("step")
            rows.setdefault(step, {}).update(row)
            end += size
        return rows, end

    def syncing(self) -> Callable[[], None]:
        """A function for any thread that puts the present rows on the disk; it raises OSError.

        A file that was removed is written again.
        """
        with self._lock:
            self._restore()

        def sync() -> None:
            # A file that is removed from now on is written again by the next call.
            with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
                os.fsync(file.fileno())

        return sync


def last_step(path: Path) -> int:
    """The last step in a RowFile; 0 without one. Damaged lines are skipped."""
    with contextlib.suppress(OSError):
        return max((row["step"] for row, _ in _parsed(path) if row is not None), default=0)
    return 0


def _line(step: int, values: Mapping[str, Any]) -> str:
    return json.dumps({"step": step, **values})


def _parsed(path: Path) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """Each line's row, None when it is damaged or incomplete, with its size in bytes."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                row = parse_json(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            whole = isinstance(row, dict) and type(row.get("step")) is int
            yield (row if whole else None), len(line)
