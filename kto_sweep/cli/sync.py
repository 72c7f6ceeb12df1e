"""kto-sweep sync: send runs that a server missed."""

import click

from kto_sweep.cli.output import json_option, print_json, say


@click.command()
@click.argument("run", required=False)
@json_option
def sync(run: str | None, as_json: bool) -> int:
    """Send the runs of this box that ended while their server was unreachable, or only RUN.

    Each run goes to its own server, and nothing is sent twice. With RUN, also checks what its server has, and
    sends the rows of a run whose agent died; otherwise `kto-sweep agent` continues such a run.

    \b
    kto-sweep sync
    kto-sweep sync ab12cd34
    """
    from kto_sweep.home import Home
    from kto_sweep.sweep.sync import find_unsynced, sync_runs

    home = Home.from_environment()
    results = []
    for result in sync_runs(home, find_unsynced(home, run)):
        message = result.error or ("already synced" if result.already_synced else "sent")
        say(f"run {result.path}: {message}", as_json=as_json)
        results.append(result)
    failed = [result for result in results if result.error]
    if as_json:
        print_json(
            {
                "sent": [result.path for result in results if not result.error],
                "failed": {result.path: result.error for result in failed},
            }
        )
    elif not results:
        say("Nothing to send: every run that ended on this box is on its server.")
    elif failed:
        say("Next: kto-sweep sync   (once that is fixed)")
    return 1 if failed else 0
