"""A sweep's plan, printed in a terminal and as JSON."""

from typing import TYPE_CHECKING, Any

from kto_sweep.plan.planner import CellEstimate, Plan
from kto_sweep.plan.timing import TimeEstimate
from kto_sweep.text import counted, duration, number

if TYPE_CHECKING:
    from rich.console import Console


def print_plan(console: "Console", plan: Plan, method: str, file: str, gpu_option: str) -> None:
    """Print a table of the cells, remedies for cells that do not fit, a summary, and the next command.

    `gpu_option`: as typed, ` --gpu 24GB`.
    """
    from rich.table import Table

    where = f"{plan.gpu.name}, {plan.gpu.usable_gib:.1f} GiB for tensors" if plan.gpu else "no GPU named"
    trials = "unlimited trials" if plan.trials is None else counted(plan.trials, "trial")
    console.print(f"{file}: {method}, {trials}; {where}\n", markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    names = list(dict.fromkeys(name for estimate in plan.cells for name in estimate.cell.varied))
    headers = [*names, "trials", "steps", "GiB", "min GiB"]
    headers += ["fits", "together", "time"] if plan.gpu else ["time"] if plan.serial else []
    headers.append("disk MB")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for estimate in plan.cells:
        cells = [number(estimate.cell.varied.get(name)) for name in names]
        table.add_row(*cells, *_cells(estimate, plan))
    console.print(table)
    console.print()
    for estimate in plan.impossible:
        line = f"Does not fit: {_name(estimate)}; to make it fit: {estimate.remedy}"
        console.print(line, markup=False, soft_wrap=True)
    for estimate in plan.cells:
        if estimate.largest_batch is not None:
            what = f"fits in one micro-batch up to batch_size {estimate.largest_batch}"
            line = f"{_name(estimate)}: {what}; larger batches are split, with the same results"
            console.print(line, markup=False, soft_wrap=True)
    for note in plan.notes:
        line = f"{note.severity.capitalize()}: {note.one_line}"
        console.print(line, markup=False, soft_wrap=True)
    console.print(plan.summary(), markup=False, soft_wrap=True)
    if plan.gpu is None:
        step = f"kto-sweep plan {file} --gpu h200    (or rtx3090, 24GB, ...)"
    elif plan.impossible:
        step = f"change {file} so that all fits, then kto-sweep plan {file}{gpu_option}"
    else:
        step = f"kto-sweep create {file}"
    console.print(f"Next: {step}", markup=False, soft_wrap=True)


def _cells(estimate: CellEstimate, plan: Plan) -> list[str]:
    cells = [
        str(estimate.cell.count or "-"),
        f"{estimate.steps:,}",
        _gib(estimate.peak_gib),
        _gib(estimate.least_gib),
    ]
    time = "-" if estimate.time is None else duration(estimate.time.seconds)
    if plan.gpu:
        fits = {None: "?", True: "yes", False: "no"}[estimate.fits]
        fits = "split" if estimate.fits and not estimate.comfortable else fits
        cells += [fits, str(estimate.together or "-"), time]
    elif plan.serial:
        cells.append(time)
    return [*cells, f"{estimate.disk_bytes / 1e6:,.0f}"]


def _gib(amount: float | None) -> str:
    return "?" if amount is None else f"{amount:.1f}"


def _name(estimate: CellEstimate) -> str:
    varied = estimate.cell.varied
    return "  ".join(f"{name}={number(value)}" for name, value in varied.items()) or "every trial"


def as_object(plan: Plan) -> dict[str, Any]:
    """The plan for --json; GiB, seconds and bytes."""
    return {
        "gpu": None
        if plan.gpu is None
        else {"name": plan.gpu.name, "gib": plan.gpu.gib, "room": plan.gpu.usable_gib},
        "trials": plan.trials,
        "trials_together": plan.together,
        "serial": _time(plan.serial),
        "makespan": _time(plan.makespan),
        "disk_bytes": plan.disk_bytes,
        "exact_tokens": plan.exact_tokens,
        "impossible": len(plan.impossible),
        "cells": [_cell(estimate) for estimate in plan.cells],
        "notes": [note.one_line for note in plan.notes],
    }


def _cell(estimate: CellEstimate) -> dict[str, Any]:
    return {
        "parameters": dict(estimate.cell.varied),
        "trials": estimate.cell.count,
        "steps": estimate.steps,
        "trainer": estimate.trainer,
        "peak_gib": estimate.peak_gib,
        "least_gib": estimate.least_gib,
        "fits": estimate.fits,
        "comfortable": estimate.comfortable,
        "together": estimate.together,
        "largest_batch": estimate.largest_batch,
        "remedy": estimate.remedy or None,
        "time": _time(estimate.time),
        "disk_bytes": estimate.disk_bytes,
    }


def _time(time: TimeEstimate | None) -> dict[str, Any] | None:
    if time is None:
        return None
    return {"seconds": time.seconds, "uncertainty_factor": time.factor, "source": time.source}
