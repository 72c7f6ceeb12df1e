"""The state of each cell of a grid: done, running, paused, failed or missing, each cell counted once.

A pure function of a sweep and its runs as plain data, so it is the same for W&B and the embedded server.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kto_sweep.errors import FailureCause
from kto_sweep.search import grid
from kto_sweep.sweep.view import UNFINISHED, SweepView, TrialRecord

MAX_CELLS = 100_000
"""For a larger grid only the runs are listed, not the cells."""

WAITING = frozenset({"pending", "preempted"})
"""Run states of a trial that no agent is training."""


class CellState(StrEnum):
    """The state of a cell."""

    DONE = "done"
    """Finished, or stopped early on purpose."""
    RUNNING = "running"
    PAUSED = "paused"
    """By successive halving: resumes if it ranks among the best, otherwise it counts as stopped early."""
    FAILED = "failed"
    MISSING = "missing"
    """No run yet, or only a waiting run in an ended sweep."""


@dataclass(frozen=True)
class GridCell:
    """One combination of a grid's values, or one run of a sweep that is not a grid."""

    config: Mapping[str, Any]
    """Nested, as a trial receives it."""
    state: CellState
    trial: TrialRecord | None
    """The run that determines the state; None without a run."""
    run_ids: tuple[str, ...] = ()
    """All runs of the cell, oldest first; an aborted attempt leaves an extra one."""

    @property
    def is_stopped(self) -> bool:
        """Done because it was stopped early."""
        return self.state is CellState.DONE and self.trial is not None and self.trial.state == "killed"

    @property
    def is_retryable(self) -> bool:
        """Failed because of a crash, a full disk, a faulty GPU or the network, not because of the trial."""
        if self.state is not CellState.FAILED or self.trial is None:
            return False
        cause = self.trial.summary.get("failure/cause")
        if cause is None:
            return self.trial.state == "crashed"
        return cause in set(FailureCause) and not FailureCause(cause).is_the_trials_own


@dataclass(frozen=True)
class GridStatus:
    """The cells of a sweep and their states."""

    cells: tuple[GridCell, ...]
    """The cells of a grid in its order, up to its run_cap; for other sweeps, their runs."""
    lists_every_cell: bool
    """True for a grid whose cells are listed: no others will follow."""
    outside_grid: tuple[TrialRecord, ...] = ()
    """Runs that match no cell: the grid changed, or someone attached them by hand."""

    def in_state(self, state: CellState) -> tuple[GridCell, ...]:
        """The cells in this state."""
        return tuple(cell for cell in self.cells if cell.state is state)

    @property
    def stopped(self) -> tuple[GridCell, ...]:
        """The done cells that were stopped early."""
        return tuple(cell for cell in self.cells if cell.is_stopped)

    @property
    def retryable(self) -> tuple[GridCell, ...]:
        """The failed cells that may succeed when retried."""
        return tuple(cell for cell in self.cells if cell.is_retryable)


def read_grid_status(view: SweepView) -> GridStatus:
    """The state of each cell of this sweep."""
    over = view.state in {"FINISHED", "CANCELED"}
    size = view.space.grid_size() if view.method == "grid" and view.space.parameters else None
    if size is None or size > MAX_CELLS or not grid.can_list(view.space):
        counted = filter(view.is_counted, view.trials)
        runs = (_cell(trial.config, [trial], over=over) for trial in counted)
        return GridStatus(tuple(runs), lists_every_cell=False)
    trials_by_key: dict[str, list[TrialRecord]] = {}
    for trial in view.trials:
        trials_by_key.setdefault(grid.cell_key(view.space, trial.config), []).append(trial)
    cells = [_cell(config, trials_by_key.pop(key, []), over=over) for key, config in grid.cells(view.space)]
    outside_grid = tuple(trial for trials in trials_by_key.values() for trial in trials)
    return GridStatus(
        tuple(_within_cap(cells, view.expected or size)), lists_every_cell=True, outside_grid=outside_grid
    )


def count_missing(view: SweepView, status: GridStatus) -> int | None:
    """The number of trials that have not started; None for an unlimited sweep."""
    missing = len(status.in_state(CellState.MISSING))
    if status.lists_every_cell:
        return missing
    return None if view.expected is None else max(0, view.expected - len(status.cells)) + missing


def _cell(config: Mapping[str, Any], trials: list[TrialRecord], *, over: bool) -> GridCell:
    """The cell with the state of its most advanced run; of several equally advanced ones, the newest."""
    best, state = None, CellState.MISSING
    for trial in trials:
        if best is None or _progress(trial) >= _progress(best):
            best, state = trial, _state(trial, over=over)
    return GridCell(config, state, best, tuple(trial.run_id for trial in trials))


def _progress(trial: TrialRecord) -> int:
    if trial.state == "finished":
        return 3
    if trial.state in UNFINISHED:
        return 2
    return 1 if trial.state == "killed" else 0


def _state(trial: TrialRecord, *, over: bool) -> CellState:
    if trial.state in {"finished", "killed"}:
        return CellState.DONE
    if trial.paused:
        return CellState.DONE if over else CellState.PAUSED
    if trial.state in UNFINISHED:
        return CellState.MISSING if over and trial.state in WAITING else CellState.RUNNING
    return CellState.FAILED


def _within_cap(cells: Iterable[GridCell], expected: int) -> list[GridCell]:
    """The cells that have a run, and as many of the others as the run_cap still allows."""
    cells = list(cells)
    remaining = expected - sum(bool(cell.run_ids) for cell in cells)
    kept = []
    for cell in cells:
        if not cell.run_ids:
            remaining -= 1
        if cell.run_ids or remaining >= 0:
            kept.append(cell)
    return kept
