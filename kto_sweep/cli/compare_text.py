"""A comparison for people in a terminal: the ranking, replicates, importance, and the verdict."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from kto_sweep.cli.output import console, number
from kto_sweep.cli.ranking_table import fill, ranking, total_width
from kto_sweep.compare.comparison import Comparison, Curves
from kto_sweep.compare.ranking import Ranked
from kto_sweep.compare.replicates import SEED
from kto_sweep.trial import lookup

if TYPE_CHECKING:
    from rich.console import Console

BAR_WIDTH = 24
"""Characters."""


def print_comparison(
    found: Comparison, shown: Sequence[Ranked], parameters: Sequence[str], margins: Curves
) -> None:
    """All of it; `margins` holds the curves for the sparklines."""
    out = console()
    drawn = out.encoding.lower().startswith("utf")  # other terminals have no such letters
    curves = {run: each for run, each in margins.items() if each and drawn}
    columns, left_out = ranking(found, shown, parameters, curves, out.width if out.is_terminal else None)
    if not out.is_terminal:
        out.width = max(out.width, total_width(columns))  # nothing limits a file or a pipe
    title = f"{found.view.ref}: {len(found.ranked)} trials by {found.metric} ({found.goal})"
    out.print(fill(_table(title), columns, shown))
    if left_out:
        out.print(f"The terminal is too narrow for: {', '.join(left_out)}", soft_wrap=True)
    if len(shown) < len(found.ranked):
        out.print(f"{len(found.ranked) - len(shown)} more: kto-sweep compare {found.view.ref.id}")
    if not found.ranked:
        out.print(f"No trial yet. Next: kto-sweep agent {found.view.ref.id}")
        return
    if not found.groups:
        out.print(f"No trial has logged {found.metric} yet.")
    else:
        _print_signs(out, found, marked="Pareto" not in left_out)
    if found.replicated:
        out.print(_replicates(found, parameters))
    if found.importance.rows:
        out.print(_importance(found, "█" if drawn else "#"))
    for heading, sentences in found.verdict.parts():
        for place, sentence in enumerate(sentences):
            out.print(f"{heading if place == 0 else '':<14} {escape(sentence)}", soft_wrap=True)


def _print_signs(out: "Console", found: Comparison, *, marked: bool) -> None:
    best = found.ranked[0].trial.run_id
    out.print(f"* best: run {best}   {found.view.url}", soft_wrap=True)
    signs = [f"{front.sign}: {front.meaning}" for front in found.fronts if front.runs]
    if signs and marked:
        out.print("; ".join(signs), soft_wrap=True)
    out.print()


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
