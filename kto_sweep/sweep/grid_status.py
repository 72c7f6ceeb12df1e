"""What has become of a sweep's trials: every cell of a grid done, running, failed or missing, exactly once.

A pure function of the sweep and its runs as wandb.Api tells them, so it holds for every server.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kto_sweep.errors import FailureCause
from kto_sweep.search import grid
from kto_sweep.sweep.view import RUNNING, SweepView, TrialRecord

MOST_CELLS = 100_000
"""A larger grid is told by its runs alone: nobody reads a list of its cells."""

WAITING = frozenset({"pending", "preempted"})
"""Run states of a trial that no process works on."""


class CellState(StrEnum):
    """What has become of a cell."""

    DONE = "done"
    """Finished, or stopped early on purpose."""
    RUNNING = "running"
    PAUSED = "paused"
    """By successive halving: it goes on if it comes to be among the best, else it has ended early."""
    FAILED = "failed"
    MISSING = "missing"
    """No run yet, or one that waits in a sweep that is over."""


@dataclass(frozen=True)
class Cell:
    """One combination of a grid, or one run of a sweep that has no cells."""

    config: Mapping[str, Any]
    """Nested, as a trial gets it."""
    state: CellState
    trial: TrialRecord | None
    """The run that the state is taken from; None where there is none."""
    run_ids: tuple[str, ...] = ()
    """All its runs, oldest first: an aborted attempt can have left one."""

    @property
    def is_stopped(self) -> bool:
        """Done because it was told to stop."""
        return self.state is CellState.DONE and self.trial is not None and self.trial.state == "killed"

    @property
    def is_retryable(self) -> bool:
        """Failed for a cause that lies in its surroundings: a crash, a full disk, a sick GPU, the network."""
        if self.state is not CellState.FAILED or self.trial is None:
            return False
        cause = self.trial.summary.get("failure/cause")
        if cause is None:
            return self.trial.state == "crashed"
        return cause in set(FailureCause) and not FailureCause(cause).is_the_trials_own


@dataclass(frozen=True)
class Ledger:
    """All cells of a sweep and what has become of each."""

    cells: tuple[Cell, ...]
    """Of a grid in its order, those beyond its run_cap left out; of other sweeps their runs."""
    is_complete: bool
    """The cells are all that there will be: a grid's."""
    strays: tuple[TrialRecord, ...] = ()
    """Runs that belong to no cell: the grid was changed, or they were attached by hand."""

    def of(self, state: CellState) -> tuple[Cell, ...]:
        """The cells in this state."""
        return tuple(cell for cell in self.cells if cell.state is state)

    @property
    def stopped(self) -> tuple[Cell, ...]:
        """Done ones that were told to stop."""
        return tuple(cell for cell in self.cells if cell.is_stopped)

    @property
    def retryable(self) -> tuple[Cell, ...]:
        """Failed ones that a retry may mend."""
        return tuple(cell for cell in self.cells if cell.is_retryable)


def read_ledger(view: SweepView) -> Ledger:
    """What has become of each trial of this sweep."""
    over = view.state in {"FINISHED", "CANCELED"}
    size = view.space.grid_size() if view.method == "grid" and view.space.parameters else None
    if size is None or size > MOST_CELLS or not grid.can_list(view.space):
        own = filter(view.is_own, view.trials)
        cells = (_cell(trial.config, [trial], over=over) for trial in own)
        return Ledger(tuple(cells), is_complete=False)
    by_key: dict[str, list[TrialRecord]] = {}
    for trial in view.trials:
        by_key.setdefault(grid.cell_key(view.space, trial.config), []).append(trial)
    found = [_cell(config, by_key.pop(key, []), over=over) for key, config in grid.cells(view.space)]
    strays = tuple(trial for trials in by_key.values() for trial in trials)
    return Ledger(tuple(_within_cap(found, view.expected or size)), is_complete=True, strays=strays)


def missing(view: SweepView, ledger: Ledger) -> int | None:
    """How many trials have still to be begun; None when the sweep has no end of its own."""
    waiting = len(ledger.of(CellState.MISSING))
    if ledger.is_complete:
        return waiting
    return None if view.expected is None else max(0, view.expected - len(ledger.cells)) + waiting


def _cell(config: Mapping[str, Any], trials: list[TrialRecord], *, over: bool) -> Cell:
    """The cell; of several runs the one that got furthest counts, of those the newest."""
    best, state = None, CellState.MISSING
    for trial in trials:
        if best is None or _progress(trial) >= _progress(best):
            best, state = trial, _state(trial, over=over)
    return Cell(config, state, best, tuple(trial.run_id for trial in trials))


def _progress(trial: TrialRecord) -> int:
    if trial.state == "finished":
        return 3
    if trial.state in RUNNING:
        return 2
    return 1 if trial.state == "killed" else 0


def _state(trial: TrialRecord, *, over: bool) -> CellState:
    if trial.state in {"finished", "killed"}:
        return CellState.DONE
    if trial.paused:
        return CellState.DONE if over else CellState.PAUSED
    if trial.state in RUNNING:
        return CellState.MISSING if over and trial.state in WAITING else CellState.RUNNING
    return CellState.FAILED


def _within_cap(cells: Iterable[Cell], expected: int) -> list[Cell]:
    """The cells that have a run, and of the others as many as the sweep will still get to."""
    cells = list(cells)
    room = expected - sum(bool(cell.run_ids) for cell in cells)
    kept = []
    for cell in cells:
        if not cell.run_ids:
            room -= 1
        if cell.run_ids or room >= 0:
            kept.append(cell)
    return kept
