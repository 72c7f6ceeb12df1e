"""A trial's rows, one for each optimizer step: reported once, and kept on disk for when the trial goes on.

The file has a line a step, {"step": 1, "loss": 0.5, ...}. A trial that goes on from step 40 finds its first
40 rows there: its summary, the signs that its health is judged by, and what its reader has not got yet.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from kto_sweep.train.watch import Watch


class Logbook:
    """Takes a trial's rows in order, the first one after those that are on disk already."""

    def __init__(self, path: Path, watch: Watch) -> None:
        self._path = path
        self._watch = watch
        self._reader_has = 0
        self._file = _opened(path)
        self.summary: dict[str, float | int | str] = {}
        """The last value of each metric."""

    def go_on(self, total: int, done: int, logged: int | None) -> None:
        """Begin after `done` of `total` steps; what is on disk of later ones is dropped, they come again.

        `logged`: the last step whose row the reader has; those after it are reported now, those up to it
        never again. None: the reader has what is on disk.
        """
        rows, end = self._kept(done)
        self._file.truncate(end)
        self._reader_has = done if logged is None else logged
        self._watch.plan(total, self._reader_has)
        for step, values in rows:
            self._tell(step, values)

    def has(self, steps: int) -> bool:
        """Whether the rows of the first `steps` steps are all on disk."""
        return len(self._kept(steps)[0]) == steps

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Keep and report the row of `step`. Raises TrialFailure when the trial has diverged."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._tell(step, values)

    def _tell(self, step: int, values: Mapping[str, float]) -> None:
        self.summary |= values
        if step > self._reader_has:
            self._watch.metrics(step, values)
        else:
            self._watch.recall(step, values)

    def syncing(self) -> Callable[[], None]:
        """What has the rows of now on disk whatever happens to the machine, or to the file; on any thread.

        It raises OSError. Of a file that is removed meanwhile the next one takes care.
        """
        if not self._path.exists():  # somebody has removed it; what is open still has them
            self._file.seek(0)
            rows, file = self._file.read(), _opened(self._path)
            file.write(rows)
            self._file.close()
            self._file = file

        def sync() -> None:
            with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
                os.fsync(file.fileno())

        return sync

    def close(self) -> None:
        """Close the file; a row that a full disk did not take comes again when the trial goes on."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _kept(self, steps: int) -> tuple[list[tuple[int, dict[str, float]]], int]:
        """The rows of the first `steps` steps as far as they are whole, and where they end in the file."""
        rows: list[tuple[int, dict[str, float]]] = []
        end = 0
        with self._path.open("rb") as file:
            for line in file:
                values = _row(line)
                if len(rows) == steps or values is None or values.pop("step", None) != len(rows) + 1:
                    break
                rows.append((len(rows) + 1, values))
                end += len(line)
        return rows, end


def _opened(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a+", encoding="utf-8", buffering=1)


def _row(line: bytes) -> dict[str, Any] | None:
    """A line's values, None when it is damaged."""
    try:
        found = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
