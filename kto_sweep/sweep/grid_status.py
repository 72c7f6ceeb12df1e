"""The state of each cell of a grid, each cell counted once.

A pure function of a sweep and its runs as plain data, so it is the same for W&B and the embedded server.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kto_sweep.errors import FailureCause
from kto_sweep.search import grid
from kto_sweep.sweep.trial_state import TrialState, state_of
from kto_sweep.sweep.view import SweepView, TrialRecord

MAX_CELLS = 100_000
"""For a larger grid only the runs are listed, not the cells."""


@dataclass(frozen=True, slots=True)
class GridCell:
    """One combination of a grid's values, or one run of a sweep that is not a grid."""

    config: Mapping[str, Any]
    """Nested, as a trial receives it."""
    state: TrialState
    trial: TrialRecord | None
    """The run that determines the state; None without a run."""
    run_ids: tuple[str, ...] = ()
    """All runs of the cell, oldest first; an aborted attempt leaves an extra one."""

    @property
    def is_retryable(self) -> bool:
        """Ended by a crash, a full disk, a faulty GPU or the network: `resume` retries it."""
        if self.state not in (TrialState.FAILED, TrialState.INTERRUPTED) or self.trial is None:
            return False
        if self.trial.state not in {"failed", "crashed"}:
            return False  # the server hands it out again without being asked
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

    def in_state(self, *states: TrialState) -> tuple[GridCell, ...]:
        """The cells in one of these states."""
        if not any(self.counts[state] for state in states):
            return ()
        return tuple(cell for cell in self.cells if cell.state in states)

    @cached_property
    def counts(self) -> dict[TrialState, int]:
        """The number of cells in each state."""
        numbers = Counter(cell.state for cell in self.cells)
        return {state: numbers[state] for state in TrialState}

    @cached_property
    def done(self) -> tuple[GridCell, ...]:
        """The cells whose trials ended as the sweep intends."""
        return tuple(cell for cell in self.cells if cell.state.is_done)

    @cached_property
    def retryable(self) -> tuple[GridCell, ...]:
        """The failed cells that may succeed when retried."""
        return tuple(cell for cell in self.cells if cell.is_retryable)

    def retried_by_resume(self, *, failed: bool = False, stopped: bool = False) -> tuple[str, ...]:
        """The runs that the server must be asked to hand out again; `failed`, `stopped`: all of these too."""
        states = {TrialState.CANCELED}
        states |= {TrialState.FAILED} if failed else set()
        states |= {TrialState.STOPPED} if stopped else set()
        cells = (cell for cell in self.cells if cell.state in states or cell.is_retryable)
        return tuple(cell.trial.run_id for cell in cells if cell.trial is not None)


def read_grid_status(view: SweepView) -> GridStatus:
    """The state of each cell of this sweep."""
    size = view.space.grid_size() if view.method == "grid" and view.space.parameters else None
    if size is None or size > MAX_CELLS or not grid.can_list(view.space):
        counted = filter(view.is_counted, view.trials)
        runs = (_cell(view, trial.config, [trial]) for trial in counted)
        return GridStatus(tuple(runs), lists_every_cell=False)
    trials_by_key: dict[str, list[TrialRecord]] = {}
    for trial in view.trials:
        trials_by_key.setdefault(grid.cell_key(view.space, trial.config), []).append(trial)
    cells = [_cell(view, config, trials_by_key.pop(key, [])) for key, config in grid.cells(view.space)]
    outside_grid = tuple(trial for trials in trials_by_key.values() for trial in trials)
    return GridStatus(
        tuple(_within_cap(cells, view.expected or size)), lists_every_cell=True, outside_grid=outside_grid
    )


def count_missing(view: SweepView, status: GridStatus) -> int | None:
    """The number of trials that have not started; None for an unlimited sweep."""
    if status.lists_every_cell:
        return len(status.in_state(TrialState.NOT_STARTED))
    return None if view.expected is None else max(0, view.expected - len(status.cells))


_PROGRESS = {TrialState.FINISHED: 3, TrialState.STOPPED: 1, TrialState.FAILED: 0, TrialState.CANCELED: 0}
"""Which of a cell's runs counts; 2 for those that have not ended."""


def _cell(view: SweepView, config: Mapping[str, Any], trials: list[TrialRecord]) -> GridCell:
    """The cell with the state of its most advanced run; of several equally advanced ones, the newest."""
    best, best_state = None, TrialState.NOT_STARTED
    for trial in trials:
        state = state_of(view, trial)
        if best is None or _PROGRESS.get(state, 2) >= _PROGRESS.get(best_state, 2):
            best, best_state = trial, state
    return GridCell(config, best_state, best, tuple(trial.run_id for trial in trials))


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
