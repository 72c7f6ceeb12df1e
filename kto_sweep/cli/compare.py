"""kto-sweep compare: rank the trials of a sweep."""

import csv
import sys
from datetime import datetime
from pathlib import Path
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
from kto_sweep.cli.path_option import UserPath
from kto_sweep.errors import KtoSweepError

if TYPE_CHECKING:
    import wandb

    from kto_sweep.compare.comparison import Comparison
    from kto_sweep.wandb_client.connection import Target

CURVE_POINTS = 400
"""Points of each curve in a report or picture."""
SPARKLINE_POINTS = 60
MAX_SHOWN = 500
"""Trials in the table; more with --top. A terminal takes minutes for 50,000."""
MAX_CURVES = 60
"""Curves are read only for this many best runs."""

_file = UserPath(dir_okay=False)


@click.command()
@sweep_argument
@click.option("--metric", help="Rank by this metric instead of the sweep's own.")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    metavar="N",
    help="Show the best N trials (in the table by default 500).",
)
@click.option("--diff", is_flag=True, help="Show only parameters that differ, the most important first.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@click.option("--html", type=_file, metavar="FILE", help="Write a report with charts to one HTML file.")
@click.option("--png", type=_file, metavar="FILE", help="Write a picture of the curves and the ranking.")
@local_option
@json_option
def compare(
    sweep: str | None,
    metric: str | None,
    top: int | None,
    diff: bool,
    as_csv: bool,
    html: Path | None,
    png: Path | None,
    local: bool,
    as_json: bool,
) -> None:
    """Rank the trials of SWEEP, best first, and say how sure the ranking is and what to try next.

    \b
    kto-sweep compare
    kto-sweep compare ab12cd34 --metric eval/auc --top 10
    kto-sweep compare --diff
    kto-sweep compare --html report.html --png report.png
    kto-sweep compare --csv > trials.csv
    """
    from kto_sweep.compare.as_data import as_data, csv_rows
    from kto_sweep.compare.comparison import CURVES
    from kto_sweep.compare.comparison import compare as compare_trials
    from kto_sweep.home import Home
    from kto_sweep.metrics import METRICS
    from kto_sweep.sweep.server_choice import find_sweep
    from kto_sweep.wandb_client.connection import connect
    from kto_sweep.wandb_client.private_api import read_curves

    if as_csv and as_json:
        raise click.UsageError("--csv and --json cannot be used together")
    target, ref = find_sweep(Home.from_environment(), sweep, local=local)
    api = connect(target)
    if not as_json and not as_csv:
        say(f"Talking to {target}")
    # JSON and reports have whole summaries, and a metric of another program is one of those that it logged.
    is_whole = as_json or html is not None or (metric is not None and metric not in METRICS)
    view = read_sweep_shown(api, target, ref, None if is_whole else [metric] if metric else ())
    comparison = compare_trials(view, metric)
    if as_json:
        print_json(as_data(comparison, top))
    elif as_csv:
        parameters = comparison.differing() if diff else comparison.parameters
        csv.writer(sys.stdout).writerows(csv_rows(comparison, parameters, top))
    else:
        show(api, target, comparison, top=top, diff=diff)
    if html or png:
        best = [item.trial.run_id for item in comparison.trials][:MAX_CURVES]
        curves = read_curves(api, ref, best, CURVES, CURVE_POINTS)
        _write(comparison, curves, html, png, quiet=as_json or as_csv)


def show(
    api: "wandb.Api",
    target: "Target",
    comparison: "Comparison",
    *,
    top: int | None = None,
    diff: bool = False,
) -> None:
    """Print the comparison for people, with sparklines of the margins read from the server."""
    from kto_sweep.cli.compare_text import print_comparison
    from kto_sweep.compare.comparison import CURVES
    from kto_sweep.wandb_client.private_api import read_curves

    shown = comparison.trials[: top or MAX_SHOWN]
    run_ids = [item.trial.run_id for item in shown][:MAX_CURVES]
    margins = read_curves(api, comparison.view.ref, run_ids, CURVES[:1], SPARKLINE_POINTS)
    parameters = comparison.differing() if diff else comparison.parameters
    link = page_link(target, comparison.view.url)
    print_comparison(comparison, shown, parameters, margins, link)


def _write(
    comparison: "Comparison", curves: Any, html: Path | None, png: Path | None, *, quiet: bool
) -> None:
    from kto_sweep.home import users_umask
    from kto_sweep.report.html import render_html
    from kto_sweep.report.picture import save_picture

    for path in (html, png):
        if path is None:
            continue
        try:
            with users_umask():
                if path is html:
                    path.write_text(render_html(comparison, curves, datetime.now()), encoding="utf-8")
                else:
                    save_picture(comparison, curves, path)
        except OSError as error:
            raise KtoSweepError(f"could not write {path}: {error.strerror or error}") from error
        say(f"Wrote {path}", as_json=quiet)
