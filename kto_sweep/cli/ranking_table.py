"""The ranking of a sweep as a table that fits the terminal."""

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from kto_sweep.cli.output import number
from kto_sweep.compare.comparison import CURVES, MEMORY, Comparison, Curves
from kto_sweep.compare.ranking import Ranked
from kto_sweep.sweep.view import TrialRecord
from kto_sweep.trial import lookup

SHORT = {MEMORY: "GPU GiB", "rewards/margins": "margins"}
SPARK = "margins by step"
SPARE = (SPARK, "kl", "minutes", "GPU GiB", "Pareto", "margins")
"""Columns that a narrow terminal does without, the first to go first."""
SPARK_WIDTH = 12
"""Characters."""
LEVELS = "▁▂▃▄▅▆▇█"
GAP = 3
"""Characters between two columns, and the edges of a table."""


@dataclass(frozen=True)
class Column:
    """A column's heading, of one line or several, and its cells."""

    head: str
    cells: tuple[str, ...]
    right: bool = False
    """Whether its cells stand to the right, as numbers do."""
    spare: bool = True
    """Whether it may be left out; those that are not in SPARE never are."""

    @property
    def width(self) -> int:
        """Characters of the longest line."""
        return max(map(cell_len, (*self.head.split("\n"), *self.cells)))


def ranking(
    found: Comparison, shown: Sequence[Ranked], parameters: Sequence[str], margins: Curves, width: int | None
) -> tuple[list[Column], list[str]]:
    """The columns that fit into `width` characters (None: all do), and the headings of those that do not.

    Too wide a table has its headings folded, then failures without their causes, then fewer columns.
    """
    columns = _columns(found, shown, parameters, margins)
    if width is None:
        return columns, []
    if total_width(columns) > width:
        columns = [replace(each, head=_folded(each)) for each in columns]
    if total_width(columns) > width:
        states = tuple(item.trial.state for item in shown)
        columns = [replace(each, cells=states) if each.head == "state" else each for each in columns]
    left_out = []
    for head in SPARE:
        spare = [each for each in columns if each.spare and each.head.replace("\n", "") == head]
        if spare and total_width(columns) > width:
            columns.remove(spare[0])
            left_out.append(head)
    return columns, left_out


def fill(table: Table, columns: Sequence[Column], shown: Sequence[Ranked]) -> Table:
    """The table with these columns; the best trial stands out."""
    for each in columns:
        table.add_column(escape(each.head), justify="right" if each.right else "left", overflow="fold")
    for place, item in enumerate(shown):
        cells = (escape(each.cells[place]) for each in columns)
        table.add_row(*cells, style="bold" if item.rank == 1 else "")
    return table


def _columns(
    found: Comparison, shown: Sequence[Ranked], parameters: Sequence[str], margins: Curves
) -> list[Column]:
    trials = [item.trial for item in shown]
    places = tuple("* 1" if item.rank == 1 else f"  {item.rank or '-'}" for item in shown)
    columns = [Column("", places), Column("run", tuple(trial.run_id for trial in trials))]
    for name in parameters:
        values = tuple(number(lookup(trial.config, name)) for trial in trials)
        columns.append(Column(name, values, right=True, spare=False))
    for name in found.metrics:
        values = tuple(number(trial.summary.get(name)) for trial in trials)
        columns.append(Column(SHORT.get(name, name), values, right=True, spare=name != found.metric))
    if margins:
        columns.append(Column(SPARK, tuple(_spark(margins, trial) for trial in trials)))
    if any(front.runs for front in found.fronts):
        columns.append(Column("Pareto", tuple(_signs(found, trial) for trial in trials)))
    columns.append(Column("state", tuple(map(_state, trials))))
    minutes = tuple("-" if trial.seconds is None else f"{trial.seconds / 60:.1f}" for trial in trials)
    columns.append(Column("minutes", minutes, right=True))
    return columns


def _spark(margins: Curves, trial: TrialRecord) -> str:
    curve = margins.get(trial.run_id, {}).get(CURVES[0])
    return sparkline(curve["value"]) if curve else ""


def _signs(found: Comparison, trial: TrialRecord) -> str:
    fronts = [front for front in found.fronts if front.runs]
    return "".join(front.sign if trial.run_id in front.runs else " " for front in fronts)


def _state(trial: TrialRecord) -> str:
    state = _plain_state(trial)
    return f"{state} ({trial.failure})" if trial.failure not in {"", trial.state} else state


def _plain_state(trial: TrialRecord) -> str:
    return "paused" if trial.paused else trial.state


def total_width(columns: Sequence[Column]) -> int:
    """Characters of a table with these columns at most."""
    return sum(each.width + GAP for each in columns)


def _folded(column: Column) -> str:
    """The heading in lines as short as its words and cells allow, broken after `_`, `/`, `.` and spaces."""
    words = re.findall(r"[^_/. ]*[_/. ]+|[^_/. ]+", column.head)
    widest = max(map(cell_len, (*words, *column.cells)), default=0)
    lines = [""]
    for word in words:
        if cell_len(lines[-1] + word) <= widest:
            lines[-1] += word
        else:
            lines.append(word)
    return "\n".join(lines)


def sparkline(values: Sequence[float]) -> str:
    """The values' course in a few characters, on a scale of its own, from its lowest to its highest."""
    width = min(SPARK_WIDTH, len(values))
    edges = [round(place * len(values) / width) for place in range(width + 1)] if width else [0]
    means = [statistics.fmean(values[start:end]) for start, end in pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    span = (high - low) or 1.0
    return "".join(LEVELS[round((value - low) / span * (len(LEVELS) - 1))] for value in means)
