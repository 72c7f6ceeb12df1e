"""kto-sweep compare: rank the trials of a sweep."""

import csv
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kto_sweep.cli.output import json_option, local_option, print_json, say, sweep_argument
from kto_sweep.errors import KtoSweepError

if TYPE_CHECKING:
    import wandb

    from kto_sweep.compare.comparison import Comparison

CURVE_POINTS = 400
"""Of each curve in a report or picture."""
SPARK_POINTS = 60
MOST_CURVES = 60
"""Runs, the best first, whose curves are read."""

_file = click.Path(path_type=Path, dir_okay=False)


@click.command()
@sweep_argument
@click.option("--metric", help="Rank by this metric instead of the sweep's own.")
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Show the best N trials.")
@click.option("--diff", is_flag=True, help="Show only parameters that differ, those that matter first.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@click.option("--html", type=_file, metavar="FILE", help="Write a report with charts, in one file.")
@click.option("--png", type=_file, metavar="FILE", help="Write a picture of curves and ranking.")
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
    """Rank the trials of SWEEP by its metric, best first, and say what that tells.

    \b
    kto-sweep compare
    kto-sweep compare ab12cd34 --metric eval/auc --top 10
    kto-sweep compare --diff
    kto-sweep compare --html report.html --png report.png
    kto-sweep compare --csv > trials.csv
    """
    from kto_sweep.compare.comparison import CURVES
    from kto_sweep.compare.comparison import compare as compare_trials
    from kto_sweep.compare.ranking import csv_rows
    from kto_sweep.home import Home
    from kto_sweep.sweep.server_choice import find_sweep
    from kto_sweep.wandb_client.connection import connect
    from kto_sweep.wandb_client.private_api import read_curves
    from kto_sweep.wandb_client.reader import read_sweep

    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other")
    target, ref = find_sweep(Home.from_environment(), sweep, local=local)
    if not as_json and not as_csv:
        say(f"Talking to {'the ' if target.local else ''}{target}")
    api = connect(target)
    found = compare_trials(read_sweep(api, target, ref), metric)
    if as_json:
        print_json(_as_json(found, top))
    elif as_csv:
        parameters = found.differing() if diff else found.parameters
        csv.writer(sys.stdout).writerows(csv_rows(found.ranked[:top], parameters, found.metrics))
    else:
        show(api, found, top=top, diff=diff)
    if html or png:
        best = [item.trial.run_id for item in found.ranked][:MOST_CURVES]
        _write(found, read_curves(api, ref, best, CURVES, CURVE_POINTS), html, png, quiet=as_json or as_csv)


def show(api: "wandb.Api", found: "Comparison", *, top: int | None = None, diff: bool = False) -> None:
    """Print the comparison for people, with the margins' courses as the server has them now."""
    from kto_sweep.cli.compare_text import print_comparison
    from kto_sweep.compare.comparison import CURVES
    from kto_sweep.wandb_client.private_api import read_curves

    shown = found.ranked[:top]
    runs = [item.trial.run_id for item in shown][:MOST_CURVES]
    margins = read_curves(api, found.view.ref, runs, CURVES[:1], SPARK_POINTS)
    print_comparison(found, shown, found.differing() if diff else found.parameters, margins)


def _write(found: "Comparison", curves: Any, html: Path | None, png: Path | None, *, quiet: bool) -> None:
    from kto_sweep.report.html import report
    from kto_sweep.report.picture import save_picture

    for path in (html, png):
        if path is None:
            continue
        try:
            if path is html:
                path.write_text(report(found, curves, datetime.now()), encoding="utf-8")
            else:
                save_picture(found, curves, path)
        except OSError as error:
            raise KtoSweepError(f"{path} cannot be written: {error.strerror or error}") from error
        say(f"Written: {path}", as_json=quiet)


def _as_json(found: "Comparison", top: int | None) -> dict[str, Any]:
    return {
        "sweep": str(found.view.ref),
        "metric": found.metric,
        "goal": found.goal,
        "objectives": [{"name": each.name, "goal": each.goal} for each in found.view.objectives],
        "parameters": found.parameters,
        "trials": [
            {
                "rank": item.rank,
                "run_id": item.trial.run_id,
                "state": item.trial.state,
                "paused": item.trial.paused,
                "failure": item.trial.failure,
                "seconds": item.trial.seconds,
                **{front.name: item.trial.run_id in front.runs for front in found.fronts},
                "config": item.trial.config,
                "summary": item.trial.summary,
            }
            for item in found.ranked[:top]
        ],
        "replicates": [
            {
                "run_ids": [item.trial.run_id for item in each.runs],
                "mean": each.mean,
                "standard_error": each.error,
            }
            for each in found.replicated
        ],
        "importance": {
            "parameters": [vars(row) for row in found.importance.rows],
            "note": found.importance.note,
        },
        "verdict": vars(found.verdict),
    }
