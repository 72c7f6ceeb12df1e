"""A comparison for people in a terminal: the ranking, replicates, importance, and the verdict."""

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from kto_sweep.cli.output import console, number
from kto_sweep.compare.comparison import CURVES, Comparison, Curves
from kto_sweep.compare.ranking import Ranked, lookup
from kto_sweep.compare.replicates import SEED

if TYPE_CHECKING:
    from rich.console import Console

SHORT = {"gpu/memory_peak_gb": "GPU GB", "rewards/margins": "margins"}
SPARK_WIDTH = 12
"""Characters."""
BAR_WIDTH = 24
LEVELS = "▁▂▃▄▅▆▇█"


def print_comparison(
    found: Comparison, shown: Sequence[Ranked], parameters: Sequence[str], margins: Curves
) -> None:
    """All of it; `margins` holds the curves for the sparklines."""
    out = console()
    drawn = out.encoding.lower().startswith("utf")  # other terminals have no such letters
    curves = {run: each for run, each in margins.items() if each and drawn}
    out.print(_ranking(found, shown, parameters, curves))
    if len(shown) < len(found.ranked):
        out.print(f"  {len(found.ranked) - len(shown)} more: kto-sweep compare {found.view.ref.id}")
    if not found.ranked:
        out.print(f"No trial yet. Next: kto-sweep agent {found.view.ref.id}")
        return
    if not found.groups:
        out.print(f"No trial has logged {found.metric} yet.")
    else:
        _print_signs(out, found)
    if found.replicated:
        out.print(_replicates(found, parameters))
    if found.importance.rows:
        out.print(_importance(found, "█" if drawn else "#"))
    for heading, sentences in found.verdict.parts():
        for place, sentence in enumerate(sentences):
            out.print(f"{heading if place == 0 else '':<14} {escape(sentence)}", soft_wrap=True)


def _print_signs(out: "Console", found: Comparison) -> None:
    best = found.ranked[0].trial.run_id
    out.print(f"* best: run {best}   {found.view.url}", soft_wrap=True)
    signs = [
        f"{sign}: no other is better and takes less {what}"
        for sign, what, runs in (("t", "time", found.fast), ("m", "GPU memory", found.small))
        if runs
    ]
    if signs:
        out.print("; ".join(signs), soft_wrap=True)
    out.print()


def _ranking(found: Comparison, shown: Sequence[Ranked], parameters: Sequence[str], margins: Curves) -> Table:
    title = f"{found.view.ref}: {len(found.ranked)} trials by {found.metric} ({found.goal})"
    table = _table(title)
    table.add_column("")
    table.add_column("run")
    for name in (*parameters, *found.metrics):
        table.add_column(escape(SHORT.get(name, name)), justify="right", overflow="fold")
    if margins:
        table.add_column("margins by step", no_wrap=True)
    if found.fast or found.small:
        table.add_column("Pareto", no_wrap=True)
    table.add_column("state")
    table.add_column("minutes", justify="right")
    for item in shown:
        trial = item.trial
        place = "* 1" if item.rank == 1 else f"  {item.rank or '-'}"
        state = f"{trial.state} ({trial.failure})" if trial.failure not in {"", trial.state} else trial.state
        cells = [place, trial.run_id, *(number(lookup(trial.config, name)) for name in parameters)]
        cells += [number(trial.summary.get(name)) for name in found.metrics]
        if margins:
            curve = margins.get(trial.run_id, {}).get(CURVES[0])
            cells.append(sparkline(curve["value"]) if curve else "")
        if found.fast or found.small:
            signs = (("t", found.fast), ("m", found.small))
            cells.append("".join(sign if trial.run_id in runs else " " for sign, runs in signs))
        cells += [state, "-" if trial.seconds is None else f"{trial.seconds / 60:.1f}"]
        table.add_row(*map(escape, cells), style="bold" if item.rank == 1 else "")
    return table


def sparkline(values: Sequence[float]) -> str:
    """The values' course in a few characters, on a scale of its own, from its lowest to its highest."""
    width = min(SPARK_WIDTH, len(values))
    edges = [round(place * len(values) / width) for place in range(width + 1)] if width else [0]
    means = [statistics.fmean(values[start:end]) for start, end in pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    span = (high - low) or 1.0
    return "".join(LEVELS[round((value - low) / span * (len(LEVELS) - 1))] for value in means)


def _replicates(found: Comparison, parameters: Sequence[str]) -> Table:
    names = [name for name in parameters if name.split(".")[-1] != SEED]
    table = _table("Runs equal in all but the seed")
    for name in names:
        table.add_column(escape(name), justify="right")
    for name in ("runs", f"mean {found.metric}", "standard error"):
        table.add_column(escape(name), justify="right")
    for each in found.replicated:
        config = each.runs[0].trial.config
        values = [number(lookup(config, name)) for name in names]
        table.add_row(*map(escape, values), str(len(each.runs)), number(each.mean), number(each.error))
    return table


def _importance(found: Comparison, block: str) -> Table:
    table = _table(f"Importance for {found.metric}")
    table.add_column("parameter")
    table.add_column("")
    table.add_column("share", justify="right")
    table.add_column("correlation", justify="right")
    for row in found.importance.rows:
        correlation = "" if row.correlation is None else f"{row.correlation:+.2f}"
        bar = block * round(row.importance * BAR_WIDTH)
        table.add_row(escape(row.name), bar, f"{row.importance:.0%}", correlation)
    return table


def _table(title: str) -> Table:
    return Table(
        title=escape(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="", pad_edge=False
    )
