"""kto-sweep compare: rank the trials of a sweep."""

import csv
import sys
from typing import TYPE_CHECKING

import click

from kto_sweep.cli.output import (
    console,
    json_option,
    local_option,
    number,
    print_json,
    say,
    sweep_argument,
)

if TYPE_CHECKING:
    from kto_sweep.compare import Ranked
    from kto_sweep.remote import SweepView

SHORT = {"gpu/memory_peak_gb": "GPU GB", "rewards/margins": "margins"}


@click.command()
@sweep_argument
@click.option("--metric", help="Rank by this metric instead of the sweep's own.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@local_option
@json_option
def compare(sweep: str | None, metric: str | None, as_csv: bool, local: bool, as_json: bool) -> None:
    """Rank the trials of SWEEP by its metric, best first.

    \b
    kto-sweep compare
    kto-sweep compare ab12cd34 --metric eval/auc
    kto-sweep compare --csv > trials.csv
    """
    from kto_sweep.compare import columns, csv_rows, rank, varied
    from kto_sweep.home import Home
    from kto_sweep.metrics import direction
    from kto_sweep.remote import connect, read_sweep
    from kto_sweep.target import find_sweep

    target, ref = find_sweep(Home.from_environment(), sweep, local=local)
    if not as_json and not as_csv:
        say(f"Talking to {'the ' if target.local else ''}{target}")
    view = read_sweep(connect(target), target, ref)
    by = metric or view.metric
    goal = view.goal if by == view.metric else direction(by)
    ranked = rank(view.trials, by, goal)
    parameters, metrics = varied(view), columns(view, by)
    if as_json:
        trials = [
            {
                "rank": item.rank,
                "run_id": item.trial.run_id,
                "state": item.trial.state,
                "config": item.trial.config,
                "summary": item.trial.summary,
            }
            for item in ranked
        ]
        print_json({"metric": by, "goal": goal, "trials": trials})
    elif as_csv:
        csv.writer(sys.stdout).writerows(csv_rows(ranked, parameters, metrics))
    else:
        print_table(view, ranked, by, goal)


def print_table(view: "SweepView", ranked: "list[Ranked]", metric: str, goal: str) -> None:
    """The ranking for people: varied parameters, metric, margins, KL, GPU memory, state, minutes."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from kto_sweep.compare import columns, lookup, varied

    parameters, metrics = varied(view), columns(view, metric)
    title = f"{view.ref}: {len(ranked)} trials by {metric} ({goal})"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="")
    table.add_column("")
    table.add_column("run")
    for name in (*parameters, *metrics):
        table.add_column(escape(SHORT.get(name, name)), justify="right", overflow="fold")
    table.add_column("state")
    table.add_column("minutes", justify="right")
    for item in ranked:
        trial = item.trial
        place = "* 1" if item.rank == 1 else f"  {item.rank or '-'}"
        state = f"{trial.state} ({trial.failure})" if trial.failure not in {"", trial.state} else trial.state
        minutes = "-" if trial.seconds is None else f"{trial.seconds / 60:.1f}"
        cells = [number(lookup(trial.config, name)) for name in parameters]
        cells += [number(trial.summary.get(name)) for name in metrics]
        row = [place, trial.run_id, *cells, state, minutes]
        table.add_row(*(escape(cell) for cell in row), style="bold" if item.rank == 1 else "")
    out = console()
    out.print(table)
    if not ranked:
        out.print(f"No trial yet. Next: kto-sweep agent {view.ref.id}")
    elif ranked[0].rank is None:
        out.print(f"No trial has logged {metric} yet.")
    else:
        out.print(f"* best: run {ranked[0].trial.run_id}   {view.url}", soft_wrap=True)
