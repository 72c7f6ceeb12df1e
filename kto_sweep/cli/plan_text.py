"""A sweep's plan, printed in a terminal and as JSON."""

from typing import TYPE_CHECKING, Any

from kto_sweep.cli.output import number
from kto_sweep.plan.plan import Outlook, Plan
from kto_sweep.plan.seconds import Estimate
from kto_sweep.text import duration

if TYPE_CHECKING:
    from rich.console import Console


def print_plan(console: "Console", plan: Plan, method: str, file: str) -> None:
    """Print a table of the cells, what would make the others fit, a summary, and the next command."""
    from rich.table import Table

    where = f"{plan.gpu.name}, {plan.gpu.room:.1f} GiB for tensors" if plan.gpu else "no GPU named"
    trials = "unlimited trials" if plan.trials is None else f"{plan.trials} trials"
    console.print(f"{file}: {method}, {trials}; {where}\n", markup=False)
    table = Table(box=None, pad_edge=False)
    names = list(dict.fromkeys(name for outlook in plan.outlooks for name in outlook.cell.varied))
    headers = [*names, "trials", "steps", "GiB", "min GiB"]
    headers += ["fits", "together", "time"] if plan.gpu else ["time"] if plan.serial else []
    headers.append("disk MB")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for outlook in plan.outlooks:
        told = [number(outlook.cell.varied.get(name)) for name in names]
        table.add_row(*told, *_cells(outlook, plan))
    console.print(table)
    console.print()
    for outlook in plan.impossible:
        console.print(f"Does not fit: {_name(outlook)}; to make it fit: {outlook.remedy}", markup=False)
    for outlook in plan.outlooks:
        if outlook.largest_batch is not None:
            what = f"fits in one micro-batch up to batch_size {outlook.largest_batch}"
            console.print(f"{_name(outlook)}: {what}; larger batches are split, with the same results")
    for note in plan.notes:
        console.print(f"Note: {note}", markup=False)
    console.print(plan.summary(), markup=False, soft_wrap=True)
    if plan.gpu is None:
        console.print(f"Next: kto-sweep plan {file} --gpu h200    (or rtx3090, 24GB, ...)", markup=False)
    else:
        console.print(f"Next: kto-sweep create {file}", markup=False)


def _cells(outlook: Outlook, plan: Plan) -> list[str]:
    told = [
        str(outlook.cell.count or "-"),
        f"{outlook.steps:,}",
        _gib(outlook.peak_gib),
        _gib(outlook.least_gib),
    ]
    time = "-" if outlook.time is None else duration(outlook.time.seconds)
    if plan.gpu:
        fits = {None: "?", True: "yes", False: "no"}[outlook.fits]
        fits = "split" if outlook.fits and not outlook.comfortable else fits
        told += [fits, str(outlook.together or "-"), time]
    elif plan.serial:
        told.append(time)
    return [*told, f"{outlook.disk_bytes / 1e6:,.0f}"]


def _gib(amount: float | None) -> str:
    return "?" if amount is None else f"{amount:.1f}"


def _name(outlook: Outlook) -> str:
    varied = outlook.cell.varied
    return "  ".join(f"{name}={number(value)}" for name, value in varied.items()) or "every trial"


def as_object(plan: Plan) -> dict[str, Any]:
    """The plan for --json; GiB, seconds and bytes."""
    return {
        "gpu": None
        if plan.gpu is None
        else {"name": plan.gpu.name, "gib": plan.gpu.gib, "room": plan.gpu.room},
        "trials": plan.trials,
        "trials_together": plan.together,
        "serial": _time(plan.serial),
        "makespan": _time(plan.makespan),
        "disk_bytes": plan.disk_bytes,
        "exact_tokens": plan.exact_tokens,
        "impossible": len(plan.impossible),
        "cells": [_cell(outlook) for outlook in plan.outlooks],
        "notes": list(plan.notes),
    }


def _cell(outlook: Outlook) -> dict[str, Any]:
    return {
        "parameters": dict(outlook.cell.varied),
        "trials": outlook.cell.count,
        "steps": outlook.steps,
        "trainer": outlook.trainer,
        "peak_gib": outlook.peak_gib,
        "least_gib": outlook.least_gib,
        "fits": outlook.fits,
        "comfortable": outlook.comfortable,
        "together": outlook.together,
        "largest_batch": outlook.largest_batch,
        "remedy": outlook.remedy or None,
        "time": _time(outlook.time),
        "disk_bytes": outlook.disk_bytes,
    }


def _time(time: Estimate | None) -> dict[str, Any] | None:
    if time is None:
        return None
    return {"seconds": time.seconds, "uncertainty_factor": time.factor, "source": time.source}
