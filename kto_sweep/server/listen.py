"""The listening socket: which hosts are allowed, which port is chosen, and the URL for clients."""

import errno
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.errors import ServerError, UsageError
from kto_sweep.home import Home
from kto_sweep.local_server.process import read_address

FIRST_PORT = 8642


@dataclass(frozen=True)
class Tls:
    """Certificate files for https."""

    certificate: Path
    """Certificate chain, PEM."""
    key: Path
    """Private key, PEM."""


@dataclass(frozen=True)
class ListenOptions:
    """Host, port and TLS files to listen with."""

    host: str = "127.0.0.1"
    port: int | None = None
    """None: the last server's port, else the default port, else any free port."""
    exposed: bool = False
    """Allow a host that other machines can reach."""
    tls: Tls | None = None


def check(options: ListenOptions) -> None:
    """Raises UsageError for a host that other machines can reach without `exposed`, or for missing files."""
    if not options.exposed and not _is_loopback(options.host):
        raise UsageError(
            f"with --host {options.host} other machines can reach the server",
            hint="to allow this, add --expose; or keep it local and run on the other machine: "
            f"ssh -N -L {FIRST_PORT}:127.0.0.1:{options.port or FIRST_PORT} THIS-HOST",
        )
    for path in (options.tls.certificate, options.tls.key) if options.tls else ():
        if not path.is_file():
            raise UsageError(f"no such file: {path}", hint="give --certificate and --certificate-key")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(home: Home, options: ListenOptions) -> socket.socket:
    """A listening socket on the given port, else on the last server's, the default, or any free port.

    Running agents find a restarted server only on the same port. Raises ServerError.
    """
    last = read_address(home)
    candidates = [*([last.port] if last else []), FIRST_PORT, 0]
    for candidate in [options.port] if options.port is not None else candidates:
        try:
            return _listen(options.host, candidate)
        except OSError as problem:
            if problem.errno != errno.EADDRINUSE:
                where = f"{options.host} port {candidate}"
                raise ServerError(f"cannot listen on {where}: {problem.strerror}") from problem
    raise ServerError(
        f"port {options.port} is in use by another program",
        hint="choose another; --port 0 takes any free port",
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle's algorithm only if the protocol is given; with it a request takes 40 ms longer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Lets a restart bind the port while connections of the old server are in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def url(bound: socket.socket, tls: Tls | None) -> str:
    """URL for clients on this machine; a server on all interfaces is reached by loopback."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
