"""kto-sweep status: the progress of a sweep, and the trials that are left."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from kto_sweep.cli.output import json_option, local_option, print_json, say, sweep_argument
from kto_sweep.text import number

if TYPE_CHECKING:
    from kto_sweep.sweep.grid_status import GridCell, GridStatus
    from kto_sweep.sweep.view import SweepView

MAX_LISTED = 20
"""Maximum number of cells listed per state; the rest are only counted."""


@click.command()
@sweep_argument
@local_option
@json_option
def status(sweep: str | None, local: bool, as_json: bool) -> None:
    """Show the progress of SWEEP: done, running, failed and missing trials, and the next command.

    Each cell of a grid counts once, however many runs it has. Trials that were stopped early count as done.

    \b
    kto-sweep status
    kto-sweep status ab12cd34 --json
    """
    from kto_sweep.fingerprints import differences
    from kto_sweep.home import Home
    from kto_sweep.sweep.gpu_hours import gpu_time
    from kto_sweep.sweep.grid_status import read_grid_status
    from kto_sweep.sweep.server_choice import find_sweep
    from kto_sweep.wandb_client.connection import connect
    from kto_sweep.wandb_client.reader import read_sweep

    target, ref = find_sweep(Home.from_environment(), sweep, local=local)
    view = read_sweep(connect(target), target, ref)
    status = read_grid_status(view)
    if as_json:
        print_json(_as_json(view, status))
        return
    say(f"Talking to {target}")
    say(f"Sweep {ref}: {view.state.lower()}   {view.url}")
    _say_counts(view, status)
    gpu = gpu_time(view, status)
    if gpu.spent:
        remaining = "" if gpu.remaining is None else f", about {_hours(gpu.remaining)} remaining"
        say(f"  GPU-hours: {_hours(gpu.spent)} spent{remaining}")
    for difference in differences(view.trained()):
        say(f"  Warning: {difference}")
    say(f"Next: kto-sweep {_next_command(view, status)} {ref.id}")


def _hours(seconds: float) -> str:
    """GPU-hours to two digits: 0.0021, 3.5, 120."""
    value = seconds / 3600
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _as_json(view: "SweepView", status: "GridStatus") -> dict[str, Any]:
    from kto_sweep.fingerprints import differences
    from kto_sweep.sweep.gpu_hours import gpu_time
    from kto_sweep.sweep.grid_status import CellState, count_missing

    gpu = gpu_time(view, status)
    return {
        "id": view.ref.id,
        "path": str(view.ref),
        "url": view.url,
        "state": view.state,
        "expected": view.expected,
        "finished": len(status.in_state(CellState.DONE)) - len(status.stopped),
        "stopped": len(status.stopped),
        "running": len(status.in_state(CellState.RUNNING)),
        "paused": len(status.in_state(CellState.PAUSED)),
        "failed": len(status.in_state(CellState.FAILED)),
        "retryable": len(status.retryable),
        "missing": count_missing(view, status),
        "cells" if status.lists_every_cell else "runs": [_cell_as_json(view, cell) for cell in status.cells],
        "gpu_hours": {
            "spent": gpu.spent / 3600,
            "rest": None if gpu.remaining is None else gpu.remaining / 3600,
        },
        "strays": [trial.run_id for trial in status.outside_grid],
        "differences": differences(view.trained()),
    }


def _cell_as_json(view: "SweepView", cell: "GridCell") -> dict[str, Any]:
    trial = cell.trial
    return {
        "parameters": _parameters(view, cell),
        "state": cell.state,
        "cause": trial.failure if trial else "",
        "message": trial.summary.get("failure/message", "") if trial and trial.failure else "",
        "retryable": cell.is_retryable,
        "run": trial.run_id if trial else None,
        "runs": cell.run_ids,
    }


def _parameters(view: "SweepView", cell: "GridCell") -> dict[str, Any]:
    """The values of the searched parameters by dotted name."""
    from kto_sweep.compare.ranking import searched_parameters
    from kto_sweep.trial import lookup

    return {name: lookup(cell.config, name) for name in searched_parameters(view)}


def _say_counts(view: "SweepView", status: "GridStatus") -> None:
    from kto_sweep.sweep.grid_status import CellState, count_missing

    done, failed = status.in_state(CellState.DONE), status.in_state(CellState.FAILED)
    of = "" if view.expected is None else f" of {view.expected}"
    stopped = f" ({len(status.stopped)} stopped early)" if status.stopped else ""
    count = count_missing(view, status)
    missing = "" if count is None else f", {count} missing"
    running, paused = len(status.in_state(CellState.RUNNING)), len(status.in_state(CellState.PAUSED))
    paused_text = f", {paused} paused" if paused else ""
    say(f"  {len(done)}{of} done{stopped}, {running} running{paused_text}, {len(failed)} failed{missing}")
    _say_cells(view, failed)
    if done or running or paused or failed:  # listing all cells of a new sweep would be noise
        _say_cells(view, status.in_state(CellState.MISSING))
    if status.outside_grid:
        run_ids = ", ".join(trial.run_id for trial in status.outside_grid[:MAX_LISTED])
        say(f"  runs outside the grid: {run_ids}")


def _say_cells(view: "SweepView", cells: Sequence["GridCell"]) -> None:
    for cell in cells[:MAX_LISTED]:
        values = "  ".join(f"{name}={number(value)}" for name, value in _parameters(view, cell).items())
        say(f"  {cell.state:8} {values}{_run_note(cell)}")
    if len(cells) > MAX_LISTED:
        say(f"  {cells[0].state:8} and {len(cells) - MAX_LISTED} more; --json lists all")


def _run_note(cell: "GridCell") -> str:
    trial = cell.trial
    if trial is None:
        return ""
    if not trial.failure:
        return f"   run {trial.run_id} is waiting"
    retry = " (can be retried)" if cell.is_retryable else ""
    message = trial.summary.get("failure/message", "")
    return f"   run {trial.run_id}: {trial.failure}{retry}   {message}".rstrip()


def _next_command(view: "SweepView", status: "GridStatus") -> str:
    from kto_sweep.sweep.grid_status import count_missing

    if view.state == "PAUSED" or status.retryable:
        return "resume"
    if view.state not in {"FINISHED", "CANCELED"}:
        return "agent"
    return "resume" if count_missing(view, status) else "compare"
