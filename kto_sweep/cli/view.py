"""kto-sweep view: opens a sweep's page: a link that logs the browser in, or on W&B a saved workspace."""

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


@click.command()
@sweep_argument
@local_option
@json_option
def view(sweep: str | None, local: bool, as_json: bool) -> None:
    """Print a link to the page of SWEEP, with its curves, runs and grid.

    On the embedded server the link logs the browser in: it works once, within a day. In a pipe or a file, and
    with --json, the address has no login.

    On W&B this first saves a workspace with panels for margins, rewards, loss, KL, memory and parameters. It
    needs the package wandb-workspaces: pip install 'kto-sweep[wandb-views]'

    \b
    kto-sweep view
    kto-sweep view my-team/kto/ab12cd34
    """
    from kto_sweep.home import Home
    from kto_sweep.report.wandb_views import save_workspace
    from kto_sweep.sweep.server_choice import find_sweep
    from kto_sweep.wandb_client.connection import connect
    from kto_sweep.wandb_client.reader import require_sweep

    target, ref = find_sweep(Home.from_environment(), sweep, local=local)
    api = connect(target)
    say(f"Talking to {target}", as_json=as_json)
    if target.is_embedded:
        require_sweep(api, target, ref)  # without its runs, which take seconds in a large sweep
        url = ref.url(target.app_url)
    else:
        url = save_workspace(read_sweep_shown(api, target, ref))
    if as_json:
        print_json({"sweep": str(ref), "url": url, "saved": not target.is_embedded})
    elif target.is_embedded:
        say(f"Sweep {ref}: {page_link(target, url)}")
    else:
        say(f"Saved: {url}")
