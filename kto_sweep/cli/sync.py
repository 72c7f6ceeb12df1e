"""kto-sweep sync: what a server has missed."""

import click

from kto_sweep.cli.output import json_option, print_json, say


@click.command()
@click.argument("run", required=False)
@json_option
def sync(run: str | None, as_json: bool) -> int:
    """Send the runs of this box that ended while their server was gone, or RUN alone.

    Each goes to the server that it belongs to. What a server has already is not sent again; of a RUN that is
    named it is asked. One whose agent died goes as far as it came; without its name it is left to `kto-sweep
    agent`, which goes on with it.

    \b
    kto-sweep sync
    kto-sweep sync ab12cd34
    """
    from kto_sweep.home import Home
    from kto_sweep.sweep.sync import find_unsent, send

    home = Home.from_environment()
    outcomes = []
    for outcome in send(home, find_unsent(home, run)):
        told = outcome.trouble or ("was there already" if outcome.was_there else "sent")
        say(f"run {outcome.path}: {told}", as_json=as_json)
        outcomes.append(outcome)
    failed = [outcome for outcome in outcomes if outcome.trouble]
    if as_json:
        print_json(
            {
                "sent": [outcome.path for outcome in outcomes if not outcome.trouble],
                "failed": {outcome.path: outcome.trouble for outcome in failed},
            }
        )
    elif not outcomes:
        say("Nothing to send: every run that ended here is on its server.")
    elif failed:
        say("Next: kto-sweep sync   (once that is mended)")
    return 1 if failed else 0
