"""kto-sweep push: copy a sweep from the embedded server to W&B."""

import click

from kto_sweep.cli.output import json_option, page_link, print_json, say, sweep_argument


@click.command()
@sweep_argument
@click.option(
    "--to", "url", metavar="URL", help="The W&B server. Default: the one that wandb is logged in to."
)
@click.option("--project", help="W&B project there. Default: the sweep's project.")
@click.option("--entity", help="W&B user or team there. Default: the key's.")
@json_option
def push(sweep: str | None, url: str | None, project: str | None, entity: str | None, as_json: bool) -> int:
    """Copy SWEEP from the embedded server to W&B, with its runs: configs, histories, summaries, states, tags.

    Sends nothing twice; running it again continues an interrupted push. Leaves unfinished runs for the next
    push. Logged rows keep their timestamps; the runs get the time of the push.

    \b
    wandb login
    kto-sweep push
    kto-sweep push ab12cd34 --to https://wandb.example.com --entity my-team
    """
    from kto_sweep.errors import UsageError
    from kto_sweep.home import Home
    from kto_sweep.sweep.push import push_sweep
    from kto_sweep.sweep.server_choice import find_remote, find_sweep
    from kto_sweep.text import counted

    home = Home.from_environment()
    destination = find_remote(url)
    source, ref = find_sweep(home, sweep, local=True)
    if destination.base_url == source.base_url:
        raise UsageError(
            f"{destination.base_url} is the embedded server, which already has the sweep",
            hint="kto-sweep push --to https://wandb.example.com",
        )
    say(f"Pushing {ref} from {source} to {destination}", as_json=as_json)
    pushed = push_sweep(
        home, source, ref, destination,
        project=project, entity=entity, say=lambda line: say(line, as_json=as_json),
    )  # fmt: skip
    if as_json:
        print_json(
            {"id": pushed.ref.id, "path": str(pushed.ref), "url": pushed.url}
            | {"sent": pushed.sent, "present": pushed.already_there, "unfinished": pushed.unfinished}
        )
        return 0
    sent, already_there = counted(len(pushed.sent), "run"), len(pushed.already_there)
    link = page_link(destination, pushed.url)
    say(f"Sweep {pushed.ref}: {sent} sent, {already_there} already there\n  {link}")
    if pushed.unfinished:
        say(f"Unfinished, not sent: {', '.join(pushed.unfinished)}")
        say(f"Next: kto-sweep push {ref.argument}   (when they have finished)")
    return 0
