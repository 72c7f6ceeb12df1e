"""The cells of a grid for the dashboard's map."""

from kto_sweep.search.space import searched_names
from kto_sweep.server.dashboard_data import Row, flat
from kto_sweep.sweep.sweep_state import SweepStatus

MAX_CELLS = 1500
"""Larger grids have no map, only the table of runs."""
MAX_PARAMETERS = 6


def cells(status: SweepStatus) -> list[Row] | None:
    """Every cell with its values, state, cause and run; None for other methods and for large grids."""
    view = status.view
    size = view.space.grid_size() if view.method == "grid" else None
    names = searched_names(view.space)
    if size is None or not 1 < size <= MAX_CELLS or len(names) > MAX_PARAMETERS:
        return None
    return [
        {
            "values": {name: value for name, value in flat(cell.config).items() if name in names},
            "state": cell.state.value,
            "cause": cell.trial.failure or None if cell.trial else None,
            "run": cell.trial.run_id if cell.trial else None,
            "value": cell.trial.value(view.metric, maximize=view.goal == "maximize") if cell.trial else None,
        }
        for cell in status.grid.cells
    ]
