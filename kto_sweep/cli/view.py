"""kto-sweep view: a saved W&B workspace with the sweep's panels."""

import click

from kto_sweep.cli.output import json_option, local_option, print_json, read_sweep_shown, say, sweep_argument


@click.command()
@sweep_argument
@local_option
@json_option
def view(sweep: str | None, local: bool, as_json: bool) -> None:
    """Save a W&B workspace with panels for SWEEP: margins, rewards, loss, KL, memory and parameters.

    The embedded server's dashboard has these panels already. On W&B this needs the package
    wandb-workspaces: pip install 'kto-sweep[wandb-views]'

    \b
    kto-sweep view
    kto-sweep view my-team/kto/ab12cd34
    """
    from kto_sweep.home import Home
    from kto_sweep.report.wandb_views import save_workspace
    from kto_sweep.sweep.server_choice import find_sweep
    from kto_sweep.wandb_client.connection import connect

    target, ref = find_sweep(Home.from_environment(), sweep, local=local)
    api = connect(target)
    say(f"Talking to {target}", as_json=as_json)
    sweep_view = read_sweep_shown(api, target, ref)
    url = sweep_view.url if target.is_embedded else save_workspace(sweep_view)
    if as_json:
        print_json({"sweep": str(ref), "url": url, "saved": not target.is_embedded})
    elif target.is_embedded:
        say(f"The embedded server's dashboard has these panels: {url}")
    else:
        say(f"Saved: {url}")
