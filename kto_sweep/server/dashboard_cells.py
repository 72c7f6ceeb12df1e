"""The cells of a grid for the dashboard's map."""

import sqlite3

from kto_sweep.search.space import searched_names
from kto_sweep.server import run_writes
from kto_sweep.server.dashboard_data import Row, flat
from kto_sweep.server.store import lines, runs
from kto_sweep.server.store.projects import Project
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_rules import SweepRules
from kto_sweep.sweep.grid_status import GridStatus, read_grid_status
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import SweepView, TrialRecord

MAX_CELLS = 1500
"""Larger grids have no map, only the table of runs."""
MAX_PARAMETERS = 6


def cells(
    connection: sqlite3.Connection, owner: Project, sweep: Sweep, rules: SweepRules
) -> list[Row] | None:
    """Every cell with its values, state, cause and run; None for other methods and for large grids."""
    space = rules.space
    size = space.grid_size() if space is not None and rules.method == "grid" else None
    if space is None or size is None or not 1 < size <= MAX_CELLS:
        return None
    names = searched_names(space)
    if len(names) > MAX_PARAMETERS:
        return None
    status = _grid_status(connection, owner, sweep, rules)
    return [
        {
            "values": {name: value for name, value in flat(cell.config).items() if name in names},
            "state": cell.state.value,
            "cause": cell.trial.failure or None if cell.trial else None,
            "run": cell.trial.run_id if cell.trial else None,
            "value": cell.trial.value(rules.metric.name, maximize=rules.metric.maximize)
            if cell.trial and rules.metric
            else None,
        }
        for cell in status.cells
    ]


def _grid_status(
    connection: sqlite3.Connection, owner: Project, sweep: Sweep, rules: SweepRules
) -> GridStatus:
    assert rules.space is not None
    return read_grid_status(
        SweepView(
            ref=SweepRef(owner.entity, owner.name, sweep.name),
            url="",
            name=sweep.name,
            state=sweep.state.value,
            method=rules.method,
            metric=rules.metric.name if rules.metric else "",
            goal="maximize" if rules.metric and rules.metric.maximize else "minimize",
            space=rules.space,
            expected=rules.expected_trials(),
            trials=tuple(
                TrialRecord(
                    run_id=run.name,
                    name=run.display_name,
                    state=run.state.value,
                    config=run_writes.plain_config(run.config),
                    summary=lines.as_row(run.summary) or {},
                    seconds=None,
                    paused=run.is_paused,
                )
                for run in [*runs.prior_runs(connection, sweep.id), *runs.of_sweep(connection, sweep.id)]
            ),
        )
    )
