"""kto-sweep widen: search beyond the end of a range at which the best value was found."""

from pathlib import Path

import click

from kto_sweep.cli.register_follow_up import follow_up, follow_up_options


@click.command()
@click.argument("sweep", required=False)
@click.argument("parameter", required=False, metavar="PARAMETER")
@follow_up_options
def widen(
    sweep: str | None,
    parameter: str | None,
    file: Path | None,
    dry_run: bool,
    local: bool,
    as_json: bool,
) -> None:
    """Search beyond the end of PARAMETER's range at which the best configuration of SWEEP lies.

    Writes a sweep file and registers it in the same project. A list of values gets two more in its own ratio
    or step; a range grows by its width, on a log scale by its ratio, at most tenfold. A grid reuses the
    finished trials of SWEEP, and a Bayesian search starts with them.

    \b
    kto-sweep widen learning_rate
    kto-sweep widen ab12cd34 learning_rate
    kto-sweep widen ab12cd34 beta --dry-run
    """
    from kto_sweep.sweep.widening import widen as wider

    if parameter is None:  # `widen PARAMETER`: click fills the arguments from the left
        sweep, parameter = None, sweep
    if parameter is None:
        raise click.UsageError("Missing argument 'PARAMETER'.")
    name = parameter
    follow_up(
        sweep,
        lambda view, best: wider(view, best, name),
        file=file,
        dry_run=dry_run,
        local=local,
        as_json=as_json,
    )
