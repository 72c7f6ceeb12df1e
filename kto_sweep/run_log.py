"""A trial's log files: every metric as JSON lines, and a table for people.

log.jsonl      {"step": 5, "timestamp": "...", "loss": 0.49, ...}, one object per logged step
console.log    the table and all other messages
"""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from kto_sweep import row_file
from kto_sweep.row_file import LineFile, RowFile
from kto_sweep.text import fitted, number

ROWS = "log.jsonl"
"""A run's rows, in its folder."""
HEADER_EVERY = 100
"""The table repeats its header after this many rows."""

_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("Loss", "loss", ".4f"),
    ("LR", "learning_rate", ".1e"),
    ("Chosen", "rewards/chosen", "+.3f"),
    ("Reject", "rewards/rejected", "+.3f"),
    ("Margin", "rewards/margins", "+.3f"),
    ("KL", "kl", ".3f"),
    ("Grad", "grad_norm", ".3g"),
    ("GPU GB", "gpu/memory_peak_gb", ".1f"),
    ("Tok/s", "tokens_per_second", ",.0f"),
)
_LEAST_NEEDED = ("gpu/memory_peak_gb", "tokens_per_second", "rewards/rejected", "rewards/chosen", "kl")
"""Columns that a narrow table leaves out, the first one first."""
_WIDTH = 8
"""Characters of a column; one more separates it from the last."""
_STEP_WIDTH, _ETA_WIDTH = 11, 9


class StepTable:
    """Formats metrics as rows of the table, of at most `width` characters if the columns that stay fit."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, width: int | None = None) -> None:
        self._clock = clock
        self._width = width
        self._started = clock()
        self._total = 0
        self._done_before = 0
        self._rows = 0

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        """Set the number of steps in total and of those already done; the ETA counts from this call."""
        self._total = total_steps
        self._done_before = done_steps
        self._started = self._clock()

    def lines(self, step: int, values: Mapping[str, float]) -> list[str]:
        """The table's next lines: a row for a training step, a line for an evaluation."""
        lines = []
        place = f"{step}/{self._total}".rjust(self._step_width)
        if "loss" in values:
            columns = self._columns
            if self._rows % HEADER_EVERY == 0:
                heads = "".join(f"{head:>{_WIDTH + 1}}" for head, _, _ in columns)
                lines.append(f"{'Step':>{self._step_width}}{heads}{'ETA':>{_ETA_WIDTH}}")
            self._rows += 1
            cells = "".join(f"{_cell(values, name, form):>{_WIDTH + 1}}" for _, name, form in columns)
            lines.append(f"{place}{cells}{self._eta(step):>{_ETA_WIDTH}}")
        evaluated = {name: value for name, value in values.items() if name.startswith("eval/")}
        if evaluated:
            lines += self._evaluation(place, evaluated)
        return lines

    def _evaluation(self, place: str, values: Mapping[str, float]) -> list[str]:
        """A line of `eval/*` metrics; more if they do not fit the width."""
        start = f"{place}  eval"
        lines = [start]
        for name, value in values.items():
            item = f"  {name.removeprefix('eval/')} {number(value)}"
            if self._width is not None and lines[-1] != start and len(lines[-1] + item) > self._width:
                lines.append(" " * len(start))
            lines[-1] += item
        return lines

    @property
    def _step_width(self) -> int:
        return max(_STEP_WIDTH, len(f"{self._total}/{self._total}"))

    @property
    def _columns(self) -> list[tuple[str, str, str]]:
        """The columns that fit the width."""
        columns = list(_COLUMNS)
        for least in _LEAST_NEEDED:
            taken = self._step_width + len(columns) * (_WIDTH + 1) + _ETA_WIDTH
            if self._width is None or taken <= self._width:
                break
            columns = [column for column in columns if column[1] != least]
        return columns

    def _eta(self, step: int) -> str:
        done = step - self._done_before
        if not (done > 0 and step <= self._total):
            return "-"
        return clock_time((self._clock() - self._started) / done * (self._total - step))


def _cell(values: Mapping[str, float], name: str, form: str) -> str:
    return fitted(values[name], form, _WIDTH) if name in values else "-"


def clock_time(seconds: float) -> str:
    """`75` as `1:15`, `4000` as `1:06:40`, 100 hours and more as `5 days`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours / 24:.0f} days" if hours < 24 * 1000 else "> 2 years"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class RunLog:
    """Writes both files; implements Report.

    Files that a user removes, or their folder, are written again by the next row.
    Keeps an earlier attempt's rows up to step `keep`, and its console log if there are any. Each line of the
    console log also goes to `echo`.
    """

    def __init__(
        self, folder: Path, *, keep: int = 0, echo: Callable[[str], None] = lambda line: None
    ) -> None:
        self._rows = RowFile(folder / ROWS)
        self.kept = self._rows.keep(keep)
        """The rows of the earlier attempt that stay, by step."""
        self._console_path = folder / "console.log"
        self._console = LineFile(self._console_path)
        if not self.kept:
            self._console.truncate()
        self._echo = echo
        self.warning = ""
        """What the user should know of the folder; said once in the console log."""
        self._table = StepTable()

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        """Set the number of steps, for the table."""
        self._table.plan(total_steps, done_steps)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics as one line of JSON, and as a row of the table."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._rows.write_row(step, {"timestamp": stamp, **values})
        for line in self._table.lines(step, values):
            self.note(line)
        if self.warning == "" and (self._rows.was_removed or self._console.was_removed):
            folder = self._console_path.parent
            self.warning = f"{folder} was removed while the trial trains: its logs were written again"
            self.note(f"WARNING: {self.warning}")

    def note(self, text: str) -> None:
        """Write one line to the console log."""
        self._console.write(text)
        self._echo(text)

    def echo_earlier(self) -> None:
        """Echo the console log's lines of earlier attempts, including lines damaged by a power cut."""
        for line in self._console_path.read_text(encoding="utf-8", errors="replace").splitlines():
            self._echo(line)

    def close(self) -> None:
        """Close both files."""
        self._rows.close()
        self._console.close()


def last_step(folder: Path) -> int:
    """The last step in the log of a run's folder; 0 without a log."""
    return row_file.last_step(folder / ROWS)
