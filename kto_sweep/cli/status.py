"""kto-sweep status: the progress of a sweep, and the trials that are left."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from kto_sweep.cli.output import (
    json_option,
    local_option,
    page_link,
    print_json,
    read_sweep_shown,
    say,
    sweep_argument,
)
from kto_sweep.text import hours, number

if TYPE_CHECKING:
    from kto_sweep.sweep.gpu_hours import GpuTime
    from kto_sweep.sweep.grid_status import GridCell
    from kto_sweep.sweep.sweep_state import SweepStatus

MAX_LISTED = 20
"""Maximum number of cells listed per state; the rest are only counted."""


@click.command()
@sweep_argument
@local_option
@json_option
def status(sweep: str | None, local: bool, as_json: bool) -> None:
    """Show the state of SWEEP, of its trials, what ended it, and the next command.

    A trial is running only if its agent sent a heartbeat in the last 90 seconds; otherwise it is
    interrupted. Each cell of a grid counts once, however many runs it has. Trials that were stopped early
    count as done.

    \b
    kto-sweep status
    kto-sweep status ab12cd34 --json
    """
    from kto_sweep.compare.sentences import alert_sentences
    from kto_sweep.fingerprints import differences
    from kto_sweep.home import Home
    from kto_sweep.run_record import home_id
    from kto_sweep.sweep.gpu_hours import gpu_time
    from kto_sweep.sweep.server_choice import find_sweep
    from kto_sweep.sweep.sweep_state import read_sweep_status
    from kto_sweep.sweep.view import OVER
    from kto_sweep.wandb_client.connection import connect

    here = Home.from_environment()
    target, ref = find_sweep(here, sweep, local=local)
    api = None if target.local else connect(target)  # without wandb, whose start takes a second
    status = read_sweep_status(read_sweep_shown(api, target, ref))
    view, home = status.view, home_id(here)
    time = gpu_time(view, status.grid)
    if as_json:
        print_json(_as_json(status, time, home))
        return
    say(f"Talking to {target}")
    say(f"Sweep {ref}: {status.state}   {page_link(target, view.url)}")
    if status.end is not None:
        say(f"  Ended: {status.end.text}")
    _say_counts(status)
    if time.spent:
        expects = bool(time.remaining) and view.state not in OVER
        remaining = f", about {hours((time.remaining or 0.0) / 3600)} remaining" if expects else ""
        say(f"  {time.unit}: {hours(time.spent / 3600)} spent{remaining}")
    for alert in alert_sentences(view):
        say(f"  {alert}")
    for difference in differences(view.trained()):
        say(f"  Warning: {difference}")
    say(f"Next: {status.next_command(home)}")


def _as_json(status: "SweepStatus", time: "GpuTime", home: str) -> dict[str, Any]:
    from kto_sweep.compare.sentences import alert_sentences
    from kto_sweep.fingerprints import differences
    from kto_sweep.sweep.grid_status import count_missing
    from kto_sweep.sweep.trial_state import TrialState

    view, grid = status.view, status.grid
    counts = grid.counts
    return {
        "id": view.ref.id,
        "path": str(view.ref),
        "url": view.url,
        "state": view.state,
        **status.facts(home),
        "expected": view.expected,
        "finished": counts[TrialState.FINISHED],
        "stopped": counts[TrialState.STOPPED],
        "running": counts[TrialState.RUNNING],
        "queued": counts[TrialState.QUEUED],
        "interrupted": counts[TrialState.INTERRUPTED],
        "paused": counts[TrialState.PAUSED],
        "canceled": counts[TrialState.CANCELED],
        "failed": counts[TrialState.FAILED],
        "retryable": len(grid.retryable),
        "missing": count_missing(view, grid),
        "failures": [
            {"cause": cause, "count": len(cells), "message": _message(cells[0])}
            for cause, cells in _failures(status).items()
        ],
        "cells" if grid.lists_every_cell else "runs": [_cell_as_json(status, cell) for cell in grid.cells],
        "gpu_hours": {
            "spent": time.spent / 3600,
            "rest": None if time.remaining is None else time.remaining / 3600,
            "unit": time.unit,
        },
        "alerts": alert_sentences(view),
        "strays": [trial.run_id for trial in grid.outside_grid],
        "differences": differences(view.trained()),
    }


def _cell_as_json(status: "SweepStatus", cell: "GridCell") -> dict[str, Any]:
    trial = cell.trial
    return {
        "parameters": _parameters(status, cell),
        "state": cell.state,
        "cause": trial.failure if trial else "",
        "message": trial.summary.get("failure/message", "") if trial and trial.failure else "",
        "retryable": cell.is_retryable,
        "run": trial.run_id if trial else None,
        "runs": cell.run_ids,
    }


def _parameters(status: "SweepStatus", cell: "GridCell") -> dict[str, Any]:
    """The values of the searched parameters by dotted name."""
    from kto_sweep.compare.ranking import searched_parameters
    from kto_sweep.trial import lookup

    return {name: lookup(cell.config, name) for name in searched_parameters(status.view)}


def _failures(status: "SweepStatus") -> dict[str, list["GridCell"]]:
    """The failed cells by cause, the most frequent first."""
    from kto_sweep.sweep.trial_state import TrialState

    cells_by_cause: dict[str, list[GridCell]] = {}
    for cell in status.grid.in_state(TrialState.FAILED):
        cells_by_cause.setdefault(cell.trial.failure if cell.trial else "", []).append(cell)
    return dict(sorted(cells_by_cause.items(), key=lambda item: -len(item[1])))


def _message(cell: "GridCell") -> str:
    return str(cell.trial.summary.get("failure/message", "")) if cell.trial else ""


def _say_counts(status: "SweepStatus") -> None:
    from kto_sweep.sweep.grid_status import count_missing
    from kto_sweep.sweep.trial_state import TrialState

    view, grid = status.view, status.grid
    of = "" if view.expected is None else f" of {view.expected}"
    stopped = len(grid.in_state(TrialState.STOPPED))
    parts = [f"{len(grid.done)}{of} done" + (f" ({stopped} stopped early)" if stopped else "")]
    shown = (TrialState.RUNNING, TrialState.QUEUED, TrialState.INTERRUPTED, TrialState.PAUSED)
    for state in (*shown, TrialState.CANCELED, TrialState.FAILED):
        if count := len(grid.in_state(state)):
            parts.append(f"{count} {state}")
    if missing := count_missing(view, grid):
        parts.append(f"{missing} not started")
    say(f"  {', '.join(parts)}")
    _say_failures(status)
    _say_cells(status, grid.in_state(TrialState.INTERRUPTED))
    if view.trials:  # listing all cells of a new sweep would be noise
        _say_cells(status, grid.in_state(TrialState.NOT_STARTED))
    if grid.outside_grid:
        run_ids = ", ".join(trial.run_id for trial in grid.outside_grid[:MAX_LISTED])
        say(f"  runs outside the grid: {run_ids}")


def _say_failures(status: "SweepStatus") -> None:
    """Each cause once, with the first line of its first trial's message, then its trials."""
    for cause, cells in _failures(status).items():
        retry = " (can be retried)" if cells[0].is_retryable else ""
        first_line = _message(cells[0]).partition("\n")[0]
        say(f"  failed: {len(cells)} {cause}{retry}   {first_line}".rstrip())
        for cell in cells[:MAX_LISTED]:
            say(f"    {_values(status, cell)}   run {cell.trial.run_id if cell.trial else ''}")
        if len(cells) > MAX_LISTED:
            say(f"    and {len(cells) - MAX_LISTED} more; --json lists all")


def _say_cells(status: "SweepStatus", cells: Sequence["GridCell"]) -> None:
    for cell in cells[:MAX_LISTED]:
        say(f"  {cell.state:11} {_values(status, cell)}{_run_note(cell)}")
    if len(cells) > MAX_LISTED:
        say(f"  {cells[0].state:11} and {len(cells) - MAX_LISTED} more; --json lists all")


def _values(status: "SweepStatus", cell: "GridCell") -> str:
    return "  ".join(f"{name}={number(value)}" for name, value in _parameters(status, cell).items())


def _run_note(cell: "GridCell") -> str:
    """The run and how far it got: `   run ab12cd34, step 15 of 30`."""
    trial = cell.trial
    if trial is None:
        return ""
    of = "" if trial.planned_steps is None else f" of {trial.planned_steps}"
    return f"   run {trial.run_id}" + ("" if trial.step is None else f", step {trial.step}{of}")
