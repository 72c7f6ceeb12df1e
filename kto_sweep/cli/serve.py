"""kto-sweep serve: the embedded server in the foreground."""

import click


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port on the loopback address; 0 takes a free one."
)
def serve(port: int | None) -> None:
    """Run the embedded W&B-compatible server in the foreground.

    create and agent start one in the background by themselves; this is for the stock tools of wandb.

    \b
    kto-sweep serve
    kto-sweep serve --port 9000
    """
    from kto_sweep.home import Home
    from kto_sweep.server.launch import serve as run_server

    run_server(Home.from_environment(), port=port)
