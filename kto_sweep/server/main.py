"""The server process: lock, port, database, key; then uvicorn until it is told to end."""

import argparse
import errno
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import uvicorn

from kto_sweep import __version__
from kto_sweep.errors import KtoSweepError, ServerError
from kto_sweep.home import Home
from kto_sweep.server import lock
from kto_sweep.server.address import Address, read_address, write_address
from kto_sweep.server.app import build_app
from kto_sweep.server.backend import Backend, Uptime
from kto_sweep.server.janitor import Janitor
from kto_sweep.server.keys import ensure_key, home_id
from kto_sweep.server.store.database import Database
from kto_sweep.server.store.migrations import migrate

FIRST_PORT = 8642


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of `python -m kto_sweep.server`."""
    parser = argparse.ArgumentParser(
        prog="python -m kto_sweep.server", description="The embedded W&B server."
    )
    parser.add_argument("--home", type=Path, required=True, help="the KTO_SWEEP_HOME to serve")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--port", type=int, help=f"port to listen on; the last one or {FIRST_PORT} if not given"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        run(Home(options.home.expanduser().resolve()), options.host, options.port)
    except KtoSweepError as problem:
        print(f"Error: {problem}", file=sys.stderr)
        if problem.hint:
            print(f"Hint: {problem.hint}", file=sys.stderr)
        return problem.exit_code
    return 0


def run(home: Home, host: str, port: int | None, started: Callable[[str], None] = lambda url: None) -> None:
    """Serve this home until SIGINT or SIGTERM; `started` gets the address once the port is bound.

    Raises ServerError when the home has a server already, the port is taken, or the database is damaged.
    """
    with lock.held(home) as is_mine:
        if not is_mine:
            known = read_address(home)
            raise ServerError(
                f"a server of {home.root} runs already{f' at {known.url}' if known else ''}",
                hint="use that one, or end it first",
            )
        bound = bind(home, host, port)
        with bound:
            _serve(home, bound, started)


def bind(home: Home, host: str, port: int | None) -> socket.socket:
    """A socket on the asked port, or else on the last server's, on the usual one, or on any.

    Agents that outlive a server find the next one only on the same port. Raises ServerError.
    """
    last = read_address(home)
    usual = [*([last.port] if last else []), FIRST_PORT, 0]
    for candidate in [port] if port is not None else usual:
        try:
            return _listen(host, candidate)
        except OSError as problem:
            if problem.errno != errno.EADDRINUSE:
                raise ServerError(
                    f"cannot listen on {host} port {candidate}: {problem.strerror}"
                ) from problem
    raise ServerError(f"port {port} is taken by another program", hint="choose another: --port 0 takes any")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only where the protocol is named; it would cost 40 ms a request.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Lets a restart take the port while connections of the old server linger; not while it still listens.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(2048)
    except OSError:
        made.close()
        raise
    return made


def _serve(home: Home, bound: socket.socket, started: Callable[[str], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    files = home.server / "files"
    files.mkdir(parents=True, exist_ok=True)
    path = home.server / "runs.sqlite3"
    migrate(path)
    database = Database(path)
    key = ensure_key(home)
    backend = Backend(
        database=database,
        files=files,
        key=key,
        clock=time.time,
        rng=random.Random(),
        uptime=Uptime(awake_since=time.time()),
    )
    janitor = Janitor(backend)
    janitor.start()
    try:
        url = _url(bound)
        identity = {"service": "kto-sweep", "version": __version__, "home_id": home_id(key)}
        app = build_app(backend, identity)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
            lifespan="off",
        )
        write_address(home, Address(url, bound.getsockname()[1], os.getpid(), __version__))
        started(url)
        uvicorn.Server(config).run(sockets=[bound])
    except _Ended:
        pass
    finally:
        janitor.stop()
        database.close()


class _Ended(BaseException):
    """A signal asked for the end. Not an Exception, so that nothing on the way swallows it."""


def _end(number: int, frame: FrameType | None) -> NoReturn:
    # uvicorn handles signals itself while it runs, and raises them again for this handler afterwards.
    raise _Ended


def _url(bound: socket.socket) -> str:
    """The address for clients on this box: a server on all addresses is reached by loopback."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
