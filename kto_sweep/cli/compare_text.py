"""A comparison printed in a terminal: the verdict, the ranking, configurations, and importance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from kto_sweep.cli.output import console
from kto_sweep.cli.ranking_table import add_columns, fit_columns, total_width
from kto_sweep.compare.comparison import Comparison, Curves
from kto_sweep.compare.ranking import RankedTrial
from kto_sweep.compare.sentences import settings_text
from kto_sweep.text import counted, number

if TYPE_CHECKING:
    from rich.console import Console

BAR_WIDTH = 24
"""Characters."""
MAX_CONFIGURATIONS = 20


def print_comparison(
    comparison: Comparison,
    shown: Sequence[RankedTrial],
    parameters: Sequence[str],
    margins: Curves,
    link: str,
) -> None:
    """Print all parts of a comparison; `margins` has the curves for the sparklines, `link` opens its page."""
    out = console()
    has_blocks = out.encoding.lower().startswith("utf")  # other encodings lack the block characters
    curves = {run_id: curve for run_id, curve in margins.items() if curve and has_blocks}
    width = out.width if out.is_terminal else None
    columns, left_out = fit_columns(comparison, shown, parameters, curves, width)
    if not out.is_terminal:
        out.width = max(out.width, total_width(columns))  # a file or a pipe has no width limit
    ref, trials = comparison.view.ref, comparison.trials
    title = f"{ref}: {counted(len(trials), 'trial')} by {comparison.metric} ({comparison.goal})"
    out.print(add_columns(_table(title), columns, shown))
    if left_out:
        out.print(f"Columns hidden in this narrow terminal: {', '.join(left_out)}", soft_wrap=True)
    if len(shown) < len(trials):
        command = f"kto-sweep compare {ref.argument} --top {len(trials)}"
        out.print(f"{len(trials) - len(shown):,} more: {command}   (or --csv)", soft_wrap=True)
    _print_legend(out, comparison, link, with_fronts="Pareto" not in left_out)
    if any(len(each.trials) > 1 for each in comparison.configurations):
        out.print(_configuration_table(comparison))
    if comparison.importance.rows:
        out.print(_importance_table(comparison, "█" if has_blocks else "#"))
    for heading, sentences in comparison.sentences:
        for index, sentence in enumerate(sentences):
            out.print(f"{heading if index == 0 else '':<14} {escape(sentence)}", soft_wrap=True)


def _print_legend(out: "Console", comparison: Comparison, link: str, *, with_fronts: bool) -> None:
    mark = "* best configuration   " if comparison.configurations else ""
    out.print(escape(f"{mark}{link}"), soft_wrap=True)
    fronts = [f"{front.marker}: {front.meaning}" for front in comparison.fronts if front.run_ids]
    if fronts and with_fronts:
        out.print("; ".join(fronts), soft_wrap=True)
    out.print()


def _configuration_table(comparison: Comparison) -> Table:
    """The configurations with the mean of their seeds, best first."""
    grouped = len(comparison.verdicts) > 1
    table = _table("Configurations")
    names = ["", "configuration", *(["judged on"] if grouped else []), "seeds", f"mean {comparison.metric}"]
    for name in (*names, "lowest", "highest"):
        table.add_column(escape(name), justify="left" if name in {"", "configuration"} else "right")
    for each in comparison.configurations[:MAX_CONFIGURATIONS]:
        cells = [f"{'*' if each.rank == 1 else ' '} {each.rank}", settings_text(each.settings)]
        cells += [each.group] if grouped else []
        cells += [str(len(each.trials)), *map(number, (each.mean, min(each.values), max(each.values)))]
        table.add_row(*map(escape, cells))
    return table


def _importance_table(comparison: Comparison, block: str) -> Table:
    table = _table(f"Parameter importance for {comparison.metric}")
    table.add_column("parameter")
    table.add_column("")
    table.add_column("share", justify="right")
    table.add_column("correlation", justify="right")
    table.add_column("best at")
    for row in comparison.importance.rows:
        correlation = "" if row.correlation is None else f"{row.correlation:+.2f}"
        bar = block * round(row.importance * BAR_WIDTH)
        table.add_row(escape(row.name), bar, f"{row.importance:.0%}", correlation, escape(row.best_region))
    return table


def _table(title: str) -> Table:
    return Table(
        title=escape(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="", pad_edge=False
    )
