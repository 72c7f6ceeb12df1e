"""kto-sweep push: from the embedded server to W&B."""

import click

from kto_sweep.cli.output import json_option, print_json, say, sweep_argument


@click.command()
@sweep_argument
@click.option(
    "--to", "url", metavar="URL", help="A W&B server; by default the one that wandb is logged in to."
)
@click.option("--project", help="W&B project there; that of the sweep.")
@click.option("--entity", help="W&B user or team there; that of the key.")
@json_option
def push(sweep: str | None, url: str | None, project: str | None, entity: str | None, as_json: bool) -> int:
    """Copy SWEEP from the embedded server to W&B, with its runs: configs, histories, summaries, states, tags.

    What is there already is not sent twice, and a push that was cut off goes on. Runs that are not over yet
    are left for the next push. The times of the logged rows are kept; those of the runs are the push's.

    \b
    wandb login
    kto-sweep push
    kto-sweep push ab12cd34 --to https://wandb.example.com --entity my-team
    """
    from kto_sweep.errors import UsageError
    from kto_sweep.home import Home
    from kto_sweep.sweep.push import push as push_sweep
    from kto_sweep.sweep.server_choice import find_remote, find_sweep

    home = Home.from_environment()
    destination = find_remote(url)
    source, ref = find_sweep(home, sweep, local=True)
    if destination.base_url == source.base_url:
        raise UsageError(
            f"{destination.base_url} is the embedded server, where the sweep is already",
            hint="kto-sweep push --to https://wandb.example.com",
        )
    say(f"Pushing {ref} from the {source} to {destination}", as_json=as_json)
    done = push_sweep(
        home, source, ref, destination,
        project=project, entity=entity, say=lambda line: say(line, as_json=as_json),
    )  # fmt: skip
    if as_json:
        print_json(
            {"id": done.ref.id, "path": str(done.ref), "url": done.url}
            | {"sent": done.sent, "present": done.present, "unfinished": done.unfinished}
        )
        return 0
    say(f"Sweep {done.ref}: {len(done.sent)} runs sent, {len(done.present)} were there\n  {done.url}")
    if done.unfinished:
        say(f"Not over yet: {', '.join(done.unfinished)}\nNext: kto-sweep push {ref.id}   (once they are)")
    return 0
