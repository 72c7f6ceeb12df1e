"""kto-sweep serve: the embedded server in the foreground."""

from pathlib import Path

import click

from kto_sweep.cli.path_option import UserPath

_file = UserPath(exists=True, dir_okay=False)


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), help="Default: the last one used; 0 picks a free one.")
@click.option("--host", default="127.0.0.1", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--expose", is_flag=True, help="Allow a --host that other machines can reach.")
@click.option("--open", "open_on_loopback", is_flag=True, help="No login for browsers of this machine.")
@click.option("--certificate", type=_file, help="TLS certificate (PEM), to serve https.")
@click.option("--certificate-key", type=_file, help="The private key, if not in the certificate's file.")
@click.option("--login", is_flag=True, help="Print a link that logs in a browser.")
@click.option("--stop", is_flag=True, help="Stop the server in the background.")
def serve(
    port: int | None,
    host: str,
    expose: bool,
    open_on_loopback: bool,
    certificate: Path | None,
    certificate_key: Path | None,
    login: bool,
    stop: bool,
) -> None:
    """Run the embedded W&B-compatible server in the foreground.

    create and agent start it in the background automatically. Run it yourself to use wandb's own tools with
    it, or to make it reachable from other machines. Its pages need a login: each page address that a command
    prints on a terminal is a link that works once, within a day, and logs the browser in. --login prints one.
    --open lifts the login until this server stops, for browsers of this machine: use it where you are the
    only user. Requests through a proxy still need the login.

    \b
    kto-sweep serve
    kto-sweep serve --port 9000
    kto-sweep serve --login
    kto-sweep serve --open
    kto-sweep serve --stop
    kto-sweep serve --host 0.0.0.0 --expose --certificate cert.pem --certificate-key key.pem
    """
    from kto_sweep.cli.output import say
    from kto_sweep.errors import UsageError
    from kto_sweep.home import Home
    from kto_sweep.local_server.start import ensure_server, stop_server
    from kto_sweep.server.main import serve as run_server

    if open_on_loopback and (login or stop):
        raise UsageError(
            "--open is for a server that starts, --login and --stop are for one that runs",
            hint="kto-sweep serve --stop, then kto-sweep serve --open",
        )
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
        open_on_loopback=open_on_loopback,
        certificate=certificate,
        certificate_key=certificate_key,
        say=say,
    )
