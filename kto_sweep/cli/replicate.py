"""kto-sweep replicate: train the best configurations of a sweep again with other seeds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kto_sweep.cli.output import sweep_argument
from kto_sweep.cli.register_follow_up import follow_up, follow_up_options
from kto_sweep.compare.next_steps import FIRST_CONFIGURATIONS, FIRST_SEEDS


def _count(flag: str, default: int, meaning: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        flag, type=click.IntRange(min=1), default=default, show_default=True, metavar="N", help=meaning
    )


@click.command()
@sweep_argument
@_count("--top", FIRST_CONFIGURATIONS, "Train the best N configurations.")
@_count("--seeds", FIRST_SEEDS, "Train each with N new seeds.")
@follow_up_options
def replicate(
    sweep: str | None, top: int, seeds: int, file: Path | None, dry_run: bool, local: bool, as_json: bool
) -> None:
    """Train the best configurations of SWEEP again with new seeds, to see which lead is more than luck.

    Writes a sweep file and registers it in the same project: a grid of exactly these configurations, each
    with seeds that SWEEP has not used. Data, model and all other parameters stay; early termination does not.
    Then `kto-sweep agent` trains it, and `compare` says which configuration has the best mean.

    \b
    kto-sweep replicate
    kto-sweep replicate ab12cd34 --top 3 --seeds 4
    kto-sweep replicate --dry-run
    """
    from kto_sweep.sweep.replication import replicate as replicates_of

    follow_up(
        sweep,
        lambda view, best: replicates_of(view, best[:top], seeds),
        file=file,
        dry_run=dry_run,
        local=local,
        as_json=as_json,
    )
