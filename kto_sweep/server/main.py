"""The server process: lock, port, database, key; then uvicorn until it is told to end."""

import argparse
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import uvicorn

from kto_sweep import __version__
from kto_sweep.errors import KtoSweepError, ServerError
from kto_sweep.home import Home
from kto_sweep.local_server.keys import ensure_key, home_id, key_path, read_key
from kto_sweep.local_server.process import ServerAddress, hold_lock, read_address, write_address
from kto_sweep.local_server.start import LocalServer
from kto_sweep.server import listen
from kto_sweep.server.app import build_app
from kto_sweep.server.listen import FIRST_PORT, ListenOptions, Tls
from kto_sweep.server.maintenance import Maintenance
from kto_sweep.server.server_state import ServerClock, ServerState
from kto_sweep.server.store.database import Database
from kto_sweep.server.store.migrations import migrate


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of `python -m kto_sweep.server`."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    tls = (
        Tls(options.certificate, options.certificate_key or options.certificate)
        if options.certificate
        else None
    )
    try:
        run(
            Home(options.home.expanduser().resolve()),
            ListenOptions(options.host, options.port, options.expose, tls),
        )
    except KtoSweepError as problem:
        print(f"Error: {problem}", file=sys.stderr)
        if problem.hint:
            print(f"Hint: {problem.hint}", file=sys.stderr)
        return problem.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kto_sweep.server", description="The embedded W&B-compatible server."
    )
    add = parser.add_argument
    add("--home", type=Path, required=True, help="the KTO_SWEEP_HOME to serve")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, help=f"port to listen on; the last one or {FIRST_PORT} if not given")
    add("--expose", action="store_true", help="allow a --host that other machines can reach")
    add("--certificate", type=Path, help="certificate chain (PEM) for https")
    add("--certificate-key", type=Path, help="its private key (PEM)")
    return parser


def run(home: Home, place: ListenOptions, started: Callable[[str], None] = lambda url: None) -> None:
    """Serve this home until SIGINT or SIGTERM; `started` gets the address once the port is bound.

    Raises UsageError for an address that others can reach without being meant to, ServerError when the home
    has a server already, the port is taken, or the database is damaged.
    """
    listen.check(place)
    with hold_lock(home) as is_mine:
        if not is_mine:
            known = read_address(home)
            raise ServerError(
                f"a server of {home.root} runs already{f' at {known.url}' if known else ''}",
                hint="use that one, or end it: kto-sweep serve --stop",
            )
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _shut_down)
            with listen.bind(home, place) as bound, _open_server_state(home) as server:
                _serve(home, bound, server, place.tls, started)
        except _Shutdown:
            pass


def serve(
    home: Home,
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    exposed: bool = False,
    certificate: Path | None = None,
    certificate_key: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Run the server of this home in the foreground until SIGINT or SIGTERM; `say` gets lines for a person.

    `exposed` allows a host that other machines can reach; with a certificate the server speaks https.
    Raises UsageError for a host that is not allowed, ServerError when this home has a server already or the
    port is taken.
    """

    def started(url: str) -> None:
        link = LocalServer(url, read_key(home), key_path(home)).login_link()
        say(f"W&B-compatible server of {home.root} at {url} (Ctrl-C ends it)")
        say(f"Dashboard: {url}\nTo control sweeps there, log in once, within the hour: {link}")
        say(f"Stock tools: export WANDB_BASE_URL={url} WANDB_API_KEY=$(cat {key_path(home)})")

    tls = Tls(certificate, certificate_key or certificate) if certificate else None
    run(home, ListenOptions(host, port, exposed, tls), started)


class _Shutdown(BaseException):
    """A signal asked for the end. Not an Exception, so that nothing on the way swallows it."""


def _shut_down(number: int, frame: FrameType | None) -> NoReturn:
    # uvicorn handles signals itself while it runs, and raises them again for this handler afterwards.
    raise _Shutdown


@contextmanager
def _open_server_state(home: Home) -> Iterator[ServerState]:
    """The parts of the server, with the maintenance at work; all of it closed at the end."""
    files = home.server / "files"
    files.mkdir(parents=True, exist_ok=True)
    path = home.server / "runs.sqlite3"
    migrate(path)
    key = ensure_key(home)
    database = Database(path)
    server = ServerState(database, files, key, ServerClock(time.time), random.Random())
    maintenance = Maintenance(server)
    maintenance.start()
    try:
        yield server
    finally:
        maintenance.stop()
        database.close()


def _serve(
    home: Home, bound: socket.socket, server: ServerState, tls: Tls | None, started: Callable[[str], None]
) -> None:
    """Announce the address and answer requests until a signal comes."""
    url = listen.url(bound, tls)
    identity = {"service": "kto-sweep", "version": __version__, "home_id": home_id(server.key)}
    config = uvicorn.Config(
        build_app(server, identity),
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        lifespan="off",
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
    )
    write_address(home, ServerAddress(url, bound.getsockname()[1], os.getpid(), __version__))
    started(url)
    uvicorn.Server(config).run(sockets=[bound])
