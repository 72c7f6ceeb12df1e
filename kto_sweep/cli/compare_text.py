"""A comparison printed in a terminal: ranking, seed groups, importance, and the verdict."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from kto_sweep.cli.output import console
from kto_sweep.cli.ranking_table import add_columns, fit_columns, total_width
from kto_sweep.compare.comparison import Comparison, Curves
from kto_sweep.compare.ranking import RankedTrial
from kto_sweep.compare.seed_groups import SEED
from kto_sweep.text import number
from kto_sweep.trial import lookup

if TYPE_CHECKING:
    from rich.console import Console

BAR_WIDTH = 24
"""Characters."""


def print_comparison(
    comparison: Comparison, shown: Sequence[RankedTrial], parameters: Sequence[str], margins: Curves
) -> None:
    """Print all parts of a comparison; `margins` has the curves for the sparklines."""
    out = console()
    has_blocks = out.encoding.lower().startswith("utf")  # other encodings lack the block characters
    curves = {run_id: curve for run_id, curve in margins.items() if curve and has_blocks}
    width = out.width if out.is_terminal else None
    columns, left_out = fit_columns(comparison, shown, parameters, curves, width)
    if not out.is_terminal:
        out.width = max(out.width, total_width(columns))  # a file or a pipe has no width limit
    ref, ranked = comparison.view.ref, comparison.ranked
    title = f"{ref}: {len(ranked)} trials by {comparison.metric} ({comparison.goal})"
    out.print(add_columns(_table(title), columns, shown))
    if left_out:
        out.print(f"Columns hidden in this narrow terminal: {', '.join(left_out)}", soft_wrap=True)
    if len(shown) < len(ranked):
        out.print(f"{len(ranked) - len(shown)} more: kto-sweep compare {ref.id}")
    if not ranked:
        out.print(f"No trials yet. Next: kto-sweep agent {ref.id}")
        return
    if not comparison.groups:
        out.print(f"No trial has logged {comparison.metric} yet.")
    else:
        _print_legend(out, comparison, with_fronts="Pareto" not in left_out)
    if comparison.replicated:
        out.print(_seed_table(comparison, parameters))
    if comparison.importance.rows:
        out.print(_importance_table(comparison, "█" if has_blocks else "#"))
    for heading, sentences in comparison.verdict.parts():
        for index, sentence in enumerate(sentences):
            out.print(f"{heading if index == 0 else '':<14} {escape(sentence)}", soft_wrap=True)


def _print_legend(out: "Console", comparison: Comparison, *, with_fronts: bool) -> None:
    best = [f"run {item.trial.run_id}{f' on {item.group}' if item.group else ''}" for item in comparison.best]
    out.print(escape(f"* best: {'; '.join(best)}   {comparison.view.url}"), soft_wrap=True)
    fronts = [f"{front.marker}: {front.meaning}" for front in comparison.fronts if front.run_ids]
    if fronts and with_fronts:
        out.print("; ".join(fronts), soft_wrap=True)
    out.print()


def _seed_table(comparison: Comparison, parameters: Sequence[str]) -> Table:
    names = [name for name in parameters if name.split(".")[-1] != SEED]
    table = _table("Configurations with several seeds")
    for name in names:
        table.add_column(escape(name), justify="right")
    for name in ("runs", f"mean {comparison.metric}", "standard error"):
        table.add_column(escape(name), justify="right")
    for group in comparison.replicated:
        config = group.runs[0].trial.config
        values = [number(lookup(config, name)) for name in names]
        statistics = (str(len(group.runs)), number(group.mean), number(group.standard_error))
        table.add_row(*map(escape, values), *statistics)
    return table


def _importance_table(comparison: Comparison, block: str) -> Table:
    table = _table(f"Parameter importance for {comparison.metric}")
    table.add_column("parameter")
    table.add_column("")
    table.add_column("share", justify="right")
    table.add_column("correlation", justify="right")
    for row in comparison.importance.rows:
        correlation = "" if row.correlation is None else f"{row.correlation:+.2f}"
        bar = block * round(row.importance * BAR_WIDTH)
        table.add_row(escape(row.name), bar, f"{row.importance:.0%}", correlation)
    return table


def _table(title: str) -> Table:
    return Table(
        title=escape(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="", pad_edge=False
    )
