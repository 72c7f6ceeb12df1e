"""The server process: takes the lock, port, key and database, then runs uvicorn until a signal."""

import argparse
import asyncio
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import uvicorn

from kto_sweep import __version__
from kto_sweep.errors import KtoSweepError, ServerError
from kto_sweep.home import Home
from kto_sweep.local_server.keys import ensure_key, home_id, key_path, read_key
from kto_sweep.local_server.login_tokens import page_link
from kto_sweep.local_server.process import ServerAddress, hold_lock, read_address
from kto_sweep.paths import resolved
from kto_sweep.server import artifact_cleanup, listen, uploads
from kto_sweep.server.app import build_app
from kto_sweep.server.connections import BACKLOG, HEADERS_SECONDS, limited_protocol, raise_file_limit
from kto_sweep.server.database_lock import DatabaseLock
from kto_sweep.server.listen import FIRST_PORT, ListenOptions, Tls
from kto_sweep.server.maintenance import MaintenanceThread
from kto_sweep.server.published_address import RESTORE_SECONDS, PublishedAddress
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
        home = Home(resolved(options.home))
        home.keep_private()
        run(
            home,
            ListenOptions(options.host, options.port, options.expose, tls),
            open_on_loopback=options.open,
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
    add("--port", type=int, help=f"port to listen on; default: the last one, else {FIRST_PORT}")
    add("--expose", action="store_true", help="allow a --host that other machines can reach")
    add("--open", action="store_true", help="browsers of this machine need no login")
    add("--certificate", type=Path, help="certificate chain (PEM) for https")
    add("--certificate-key", type=Path, help="its private key (PEM)")
    return parser


def run(
    home: Home,
    options: ListenOptions,
    started: Callable[[str], None] = lambda url: None,
    *,
    open_on_loopback: bool = False,
) -> None:
    """Serves this home until SIGINT or SIGTERM; calls `started` with the URL once the port is bound.

    `open_on_loopback`: browsers of this machine need no login.

    Raises UsageError for an address that other machines can reach without `exposed`, ServerError when the
    home already has a server, the port is in use, or the database is damaged.
    """
    listen.check(options)
    with ExitStack() as held:
        if not held.enter_context(hold_lock(home)):
            address = read_address(home)
            raise ServerError(
                f"the server of {home.root} is already running{f' at {address.url}' if address else ''}",
                hint="use that one, or stop it: kto-sweep serve --stop",
            )
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _shut_down)
            with (
                closing(DatabaseLock(home.database)) as lock,
                listen.bind(home, options) as bound,
                open_server_state(home) as server,
            ):
                address = ServerAddress(
                    listen.url(bound, options.tls), bound.getsockname()[1], os.getpid(), __version__
                )
                published = PublishedAddress(home, address, lock, held)
                _serve(published, bound, server, options.tls, started, open_on_loopback=open_on_loopback)
        except _Shutdown:
            pass


def serve(
    home: Home,
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    exposed: bool = False,
    open_on_loopback: bool = False,
    certificate: Path | None = None,
    certificate_key: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Runs this home's server in the foreground until SIGINT or SIGTERM; prints its URLs with `say`.

    `exposed` allows a host that other machines can reach, `open_on_loopback` browsers of this machine without
    a login; with a certificate the server uses https.
    Raises UsageError for a host that is not allowed, ServerError when this home already has a server or the
    port is in use.
    """

    def started(url: str) -> None:
        say(f"W&B-compatible server of {home.root} at {url} (Ctrl-C stops it)")
        say(f"Its page: {page_link(f'{url}/', read_key(home), sys.stdout)}")
        if open_on_loopback:
            say("Any user of this machine can open it and control sweeps without a login (--open).")
        say(f"For wandb's own tools: export WANDB_BASE_URL={url} WANDB_API_KEY=$(cat {key_path(home)})")

    tls = Tls(certificate, certificate_key or certificate) if certificate else None
    run(home, ListenOptions(host, port, exposed, tls), started, open_on_loopback=open_on_loopback)


class _Shutdown(BaseException):
    """Raised by a signal. Not an Exception, so that no `except Exception` catches it."""


def _shut_down(number: int, frame: FrameType | None) -> NoReturn:
    # uvicorn handles signals while it runs, and raises them again for this handler when it exits.
    raise _Shutdown


@contextmanager
def open_server_state(home: Home) -> Iterator[ServerState]:
    """Yields the server's state with the maintenance thread running; closes everything at the end."""
    files = home.server / "files"
    files.mkdir(parents=True, exist_ok=True)
    path = home.database
    migrate(path)
    key = ensure_key(home)
    database = Database(path)
    server = ServerState(database, files, key, ServerClock(time.time), random.Random())
    uploads.after_start(server)
    artifact_cleanup.after_start(server)
    maintenance = MaintenanceThread(server)
    maintenance.start()
    try:
        yield server
    finally:
        maintenance.stop()
        database.close()


def _serve(
    published: PublishedAddress,
    bound: socket.socket,
    server: ServerState,
    tls: Tls | None,
    started: Callable[[str], None],
    *,
    open_on_loopback: bool,
) -> None:
    """Publishes the address and serves requests until a signal, or until the database is taken away."""

    async def keep_published() -> None:
        if not await asyncio.to_thread(published.restore):
            process.should_exit = True

    identity = {"service": "kto-sweep", "version": __version__, "home_id": home_id(server.key)}
    config = uvicorn.Config(
        build_app(server, identity, https=tls is not None, open_on_loopback=open_on_loopback),
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        http=limited_protocol(raise_file_limit()),
        backlog=BACKLOG,
        timeout_keep_alive=HEADERS_SECONDS,
        timeout_graceful_shutdown=5,
        lifespan="off",
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
        callback_notify=keep_published,
        timeout_notify=RESTORE_SECONDS,
    )
    process = uvicorn.Server(config)
    published.write()
    started(published.address.url)
    process.run(sockets=[bound])
