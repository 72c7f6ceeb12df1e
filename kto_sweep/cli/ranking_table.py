"""The ranking of a sweep as a table that fits the terminal."""

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from kto_sweep.compare.comparison import CURVES, MEMORY, Comparison, Curves
from kto_sweep.compare.ranking import RankedTrial
from kto_sweep.sweep.view import TrialRecord
from kto_sweep.text import number
from kto_sweep.trial import lookup

SHORT_NAMES = {MEMORY: "GPU GiB", "rewards/margins": "margins"}
SPARKLINE = "margins by step"
DROP_ORDER = (SPARKLINE, "kl", "minutes", "GPU GiB", "Pareto", "id", "margins")
"""Columns that a narrow terminal drops, in this order."""
SPARKLINE_WIDTH = 12
"""Characters."""
BLOCKS = "▁▂▃▄▅▆▇█"
GAP = 3
"""Characters between two columns, and for the edges of a table."""


@dataclass(frozen=True)
class TableColumn:
    """A column: its heading, of one line or several, and its cells."""

    heading: str
    cells: tuple[str, ...]
    right: bool = False
    """Right-aligned, for numbers."""
    droppable: bool = True
    """May be dropped if its heading is in DROP_ORDER."""

    @property
    def width(self) -> int:
        """Characters of the longest line."""
        return max(map(cell_len, (*self.heading.split("\n"), *self.cells)))


def fit_columns(
    comparison: Comparison,
    shown: Sequence[RankedTrial],
    parameters: Sequence[str],
    margins: Curves,
    width: int | None,
) -> tuple[list[TableColumn], list[str]]:
    """The columns that fit into `width` characters (None: no limit), and the headings of dropped ones.

    First folds headings, then hides failure causes, then drops columns.
    """
    columns = _columns(comparison, shown, parameters, margins)
    if width is None:
        return columns, []
    if total_width(columns) > width:
        columns = [replace(column, heading=_folded(column)) for column in columns]
    if total_width(columns) > width:
        states = tuple(item.state for item in shown)
        columns = [
            replace(column, cells=states) if column.heading == "state" else column for column in columns
        ]
    dropped = []
    for heading in DROP_ORDER:
        candidates = [
            column for column in columns if column.droppable and column.heading.replace("\n", "") == heading
        ]
        if candidates and total_width(columns) > width:
            columns.remove(candidates[0])
            dropped.append(heading)
    return columns, dropped


def add_columns(table: Table, columns: Sequence[TableColumn], shown: Sequence[RankedTrial]) -> Table:
    """The table with these columns and the best trial of each ranking in bold."""
    for column in columns:
        table.add_column(escape(column.heading), justify="right" if column.right else "left", overflow="fold")
    for index, item in enumerate(shown):
        cells = (escape(column.cells[index]) for column in columns)
        table.add_row(*cells, style="bold" if item.rank == 1 else "")
    return table


def _columns(
    comparison: Comparison, shown: Sequence[RankedTrial], parameters: Sequence[str], margins: Curves
) -> list[TableColumn]:
    trials = [item.trial for item in shown]
    ranks = tuple("* 1" if item.rank == 1 else f"  {item.rank or '-'}" for item in shown)
    columns = [TableColumn("", ranks), TableColumn("run", tuple(trial.printable_name for trial in trials))]
    if any(trial.name != trial.run_id for trial in trials):
        columns.append(TableColumn("id", tuple(trial.run_id for trial in trials)))
    if any(item.group for item in shown):
        groups = tuple(item.group for item in shown)
        columns.append(TableColumn("judged on", groups, droppable=False))
    for name in parameters:
        values = tuple(number(lookup(trial.config, name)) for trial in trials)
        columns.append(TableColumn(name, values, right=True, droppable=False))
    for name in comparison.metrics:
        values = tuple(number(_logged(comparison, name, item)) for item in shown)
        heading = SHORT_NAMES.get(name, name)
        columns.append(TableColumn(heading, values, right=True, droppable=name != comparison.metric))
    if margins:
        columns.append(TableColumn(SPARKLINE, tuple(_margins(margins, trial) for trial in trials)))
    if any(front.run_ids for front in comparison.fronts):
        columns.append(TableColumn("Pareto", tuple(_front_markers(comparison, trial) for trial in trials)))
    columns.append(TableColumn("state", tuple(map(_state, shown))))
    minutes = tuple("-" if trial.seconds is None else f"{trial.seconds / 60:.1f}" for trial in trials)
    columns.append(TableColumn("minutes", minutes, right=True))
    return columns


def _logged(comparison: Comparison, name: str, item: RankedTrial) -> object:
    """The metric's value; as logged if it is not finite, such as nan."""
    if name == comparison.metric and item.value is not None:
        return item.value  # `define_metric` makes it an object in the summary
    return item.trial.summary.get(name)


def _margins(margins: Curves, trial: TrialRecord) -> str:
    curve = margins.get(trial.run_id, {}).get(CURVES[0])
    return sparkline(curve["value"]) if curve else ""


def _front_markers(comparison: Comparison, trial: TrialRecord) -> str:
    fronts = [front for front in comparison.fronts if front.run_ids]
    return "".join(front.marker if trial.run_id in front.run_ids else " " for front in fronts)


def _state(item: RankedTrial) -> str:
    """The state with its cause, or with how far the trial is."""
    trial = item.trial
    if trial.failure not in {"", trial.state}:
        return f"{item.state} ({trial.failure})"
    return f"{item.state} ({item.progress})" if item.progress else item.state


def total_width(columns: Sequence[TableColumn]) -> int:
    """Maximum characters of a table with these columns."""
    return sum(column.width + GAP for column in columns)


def _folded(column: TableColumn) -> str:
    """The heading, broken after `_`, `/`, `.` and spaces into lines no wider than the widest word or cell."""
    words = re.findall(r"[^_/. ]*[_/. ]+|[^_/. ]+", column.heading)
    widest = max(map(cell_len, (*words, *column.cells)), default=0)
    lines = [""]
    for word in words:
        if cell_len(lines[-1] + word) <= widest:
            lines[-1] += word
        else:
            lines.append(word)
    return "\n".join(lines)


def sparkline(values: Sequence[float]) -> str:
    """The curve of the values in at most SPARKLINE_WIDTH characters, scaled from minimum to maximum."""
    width = min(SPARKLINE_WIDTH, len(values))
    edges = [round(index * len(values) / width) for index in range(width + 1)] if width else [0]
    means = [statistics.fmean(values[start:end]) for start, end in pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    span = (high - low) or 1.0
    return "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1))] for value in means)
