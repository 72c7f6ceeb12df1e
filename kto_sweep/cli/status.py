"""kto-sweep status: how far a sweep is, and what is left of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from kto_sweep.cli.output import json_option, local_option, number, print_json, say, sweep_argument

if TYPE_CHECKING:
    from kto_sweep.sweep.grid_status import Cell, Ledger
    from kto_sweep.sweep.view import SweepView

MOST_LINES = 20
"""Cells of one kind that are listed; the rest is counted."""


@click.command()
@sweep_argument
@local_option
@json_option
def status(sweep: str | None, local: bool, as_json: bool) -> None:
    """Say how far SWEEP is: done, running, failed and missing trials, and what to type next.

    Each cell of a grid counts once, whatever became of its runs. Trials that were stopped early are done.

    \b
    kto-sweep status
    kto-sweep status ab12cd34 --json
    """
    from kto_sweep.fingerprints import differences
    from kto_sweep.home import Home
    from kto_sweep.sweep.gpu_hours import spending
    from kto_sweep.sweep.grid_status import read_ledger
    from kto_sweep.sweep.server_choice import find_sweep
    from kto_sweep.wandb_client.connection import connect
    from kto_sweep.wandb_client.reader import read_sweep

    target, ref = find_sweep(Home.from_environment(), sweep, local=local)
    view = read_sweep(connect(target), target, ref)
    ledger = read_ledger(view)
    if as_json:
        print_json(_as_json(view, ledger))
        return
    say(f"Talking to {'the ' if target.local else ''}{target}")
    say(f"Sweep {ref}: {view.state.lower()}   {view.url}")
    _say_ledger(view, ledger)
    spent = spending(view, ledger)
    if spent.spent:
        rest = "" if spent.rest is None else f", about {_hours(spent.rest)} to come"
        say(f"  GPU-hours: {_hours(spent.spent)} spent{rest}")
    for difference in differences(view.trained()):
        say(f"  Beware: {difference}")
    say(f"Next: kto-sweep {_next(view, ledger)} {ref.id}")


def _hours(seconds: float) -> str:
    """GPU-hours to two digits: 0.0021, 3.5, 120."""
    value = seconds / 3600
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _as_json(view: "SweepView", ledger: "Ledger") -> dict[str, Any]:
    from kto_sweep.fingerprints import differences
    from kto_sweep.sweep.gpu_hours import spending
    from kto_sweep.sweep.grid_status import CellState, missing

    spent = spending(view, ledger)
    return {
        "id": view.ref.id,
        "path": str(view.ref),
        "url": view.url,
        "state": view.state,
        "expected": view.expected,
        "finished": len(ledger.of(CellState.DONE)) - len(ledger.stopped),
        "stopped": len(ledger.stopped),
        "running": len(ledger.of(CellState.RUNNING)),
        "paused": len(ledger.of(CellState.PAUSED)),
        "failed": len(ledger.of(CellState.FAILED)),
        "retryable": len(ledger.retryable),
        "missing": missing(view, ledger),
        "cells" if ledger.is_complete else "runs": [_cell_as_json(view, cell) for cell in ledger.cells],
        "gpu_hours": {
            "spent": spent.spent / 3600,
            "rest": None if spent.rest is None else spent.rest / 3600,
        },
        "strays": [trial.run_id for trial in ledger.strays],
        "differences": differences(view.trained()),
    }


def _cell_as_json(view: "SweepView", cell: "Cell") -> dict[str, Any]:
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


def _parameters(view: "SweepView", cell: "Cell") -> dict[str, Any]:
    """What the sweep varies, by dotted name."""
    from kto_sweep.compare.ranking import varied
    from kto_sweep.trial import lookup

    return {name: lookup(cell.config, name) for name in varied(view)}


def _say_ledger(view: "SweepView", ledger: "Ledger") -> None:
    from kto_sweep.sweep.grid_status import CellState, missing

    done, failed = ledger.of(CellState.DONE), ledger.of(CellState.FAILED)
    of = "" if view.expected is None else f" of {view.expected}"
    stopped = f" ({len(ledger.stopped)} stopped early)" if ledger.stopped else ""
    left = missing(view, ledger)
    rest = "" if left is None else f", {left} missing"
    running, paused = len(ledger.of(CellState.RUNNING)), len(ledger.of(CellState.PAUSED))
    waiting = f", {paused} paused" if paused else ""
    say(f"  {len(done)}{of} done{stopped}, {running} running{waiting}, {len(failed)} failed{rest}")
    _say_cells(view, failed)
    if done or running or paused or failed:  # a sweep that has only just been created misses everything
        _say_cells(view, ledger.of(CellState.MISSING))
    if ledger.strays:
        names = ", ".join(trial.run_id for trial in ledger.strays[:MOST_LINES])
        say(f"  of no cell of this grid: {names}")


def _say_cells(view: "SweepView", cells: Sequence["Cell"]) -> None:
    for cell in cells[:MOST_LINES]:
        values = "  ".join(f"{name}={number(value)}" for name, value in _parameters(view, cell).items())
        say(f"  {cell.state:8} {values}{_about(cell)}")
    if len(cells) > MOST_LINES:
        say(f"  {cells[0].state:8} and {len(cells) - MOST_LINES} more; all of them: --json")


def _about(cell: "Cell") -> str:
    trial = cell.trial
    if trial is None:
        return ""
    if not trial.failure:
        return f"   run {trial.run_id} waits"
    again = " (can be tried again)" if cell.is_retryable else ""
    return (
        f"   run {trial.run_id}: {trial.failure}{again}   {trial.summary.get('failure/message', '')}".rstrip()
    )


def _next(view: "SweepView", ledger: "Ledger") -> str:
    """The command that brings the sweep on."""
    from kto_sweep.sweep.grid_status import missing

    if view.state == "PAUSED" or ledger.retryable:
        return "resume"
    if view.state not in {"FINISHED", "CANCELED"}:
        return "agent"
    return "resume" if missing(view, ledger) else "compare"
