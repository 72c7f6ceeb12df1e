"""kto-sweep sync: send runs that are on no server, or not completely."""

import click

from kto_sweep.cli.output import json_option, print_json, say


@click.command()
@click.argument("run", required=False)
@click.option(
    "--wandb/--local",
    "wandb",
    default=None,
    help="Send offline runs to W&B or the embedded server. Default: list them; with RUN: W&B.",
)
@json_option
def sync(run: str | None, wandb: bool | None, as_json: bool) -> int:
    """Send the runs of this box that ended while their server was unreachable, and offline runs; or only RUN.

    Each run goes to its own server, and nothing is sent twice. Offline runs (`WANDB_MODE=offline`) have none
    yet: choose it with --wandb or --local.

    With RUN, also checks what its server has, and sends the rows of a run whose agent died; otherwise
    `kto-sweep agent` continues such a run.

    \b
    kto-sweep sync
    kto-sweep sync ab12cd34
    kto-sweep sync --local
    """
    from kto_sweep.errors import UsageError
    from kto_sweep.home import Home
    from kto_sweep.sweep.sync import find_unsynced, sync_runs

    home = Home.from_environment()
    runs = find_unsynced(home, run)
    if run is not None and wandb is not None and not runs[0].record.is_offline:
        where = "the embedded server" if runs[0].record.local else f"W&B at {runs[0].record.base_url}"
        raise UsageError(
            f"run {run} belongs to {where}; --wandb and --local are for offline runs",
            hint=f"kto-sweep sync {run}",
        )
    listed = [item for item in runs if item.record.is_offline and run is None and wandb is None]
    results = []
    for result in sync_runs(home, [item for item in runs if item not in listed], local=wandb is False):
        message = result.error or ("already synced" if result.already_synced else "sent")
        say(f"run {result.path}: {message}", as_json=as_json)
        results.append(result)
    failed = [result for result in results if result.error]
    if as_json:
        print_json(
            {
                "sent": [result.path for result in results if not result.error],
                "failed": {result.path: result.error for result in failed},
                "offline": [item.run_id for item in listed],
            }
        )
        return 1 if failed else 0
    for hint in dict.fromkeys(result.hint for result in failed if result.hint):
        say(f"Hint: {hint}")
    for item in listed:
        say(f"run {item.path}: offline, on no server yet")
    if failed:
        say(f"Next: kto-sweep sync{f' {run}' if run else ''}   (once that is fixed)")
    elif listed:
        say("Next: kto-sweep sync --wandb   (sends them to W&B; --local: to the embedded server)")
    elif not results:
        say("Nothing to send: every run that ended on this box is on its server.")
    return 1 if failed else 0
