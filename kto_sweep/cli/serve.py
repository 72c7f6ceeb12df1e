"""kto-sweep serve: the embedded server in the foreground."""

from pathlib import Path

import click

from kto_sweep.cli.path_option import UserPath

_file = UserPath(exists=True, dir_okay=False)


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), help="Default: the last one used; 0 picks a free one.")
@click.option("--host", default="127.0.0.1", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--expose", is_flag=True, help="Allow a --host that other machines can reach.")
@click.option("--certificate", type=_file, help="TLS certificate (PEM), to serve https.")
@click.option("--certificate-key", type=_file, help="The private key, if not in the certificate's file.")
@click.option("--login", is_flag=True, help="Print a link that logs in a browser.")
@click.option("--stop", is_flag=True, help="Stop the server in the background.")
def serve(
    port: int | None,
    host: str,
    expose: bool,
    certificate: Path | None,
    certificate_key: Path | None,
    login: bool,
    stop: bool,
) -> None:
    """Run the embedded W&B-compatible server in the foreground.

    create and agent start it in the background automatically. Run it yourself to use wandb's own tools with
    it, or to make it reachable from other machines. Its URL opens the dashboard. The link of --login works
    once, within an hour; it lets a browser control sweeps, and view them from another machine.

    \b
    kto-sweep serve
    kto-sweep serve --port 9000
    kto-sweep serve --login
    kto-sweep serve --stop
    kto-sweep serve --host 0.0.0.0 --expose --certificate cert.pem --certificate-key key.pem
    """
    from kto_sweep.cli.output import say
    from kto_sweep.home import Home
    from kto_sweep.local_server.start import ensure_server, stop_server
    from kto_sweep.server.main import serve as run_server

    if login:
        say(ensure_server(Home.from_environment()).login_link())
        return
    if stop:
        stopped = stop_server(Home.from_environment())
        say("Stopped the embedded server." if stopped else "No embedded server is running.")
        return
    run_server(
        Home.from_environment(),
        host,
        port,
        exposed=expose,
        certificate=certificate,
        certificate_key=certificate_key,
        say=say,
    )
