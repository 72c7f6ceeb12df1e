"""Where the server listens: which address may be used, which port is taken, and how clients name it."""

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
    """The files of a server that speaks https."""

    certificate: Path
    """Certificate chain, PEM."""
    key: Path
    """Private key, PEM."""


@dataclass(frozen=True)
class ListenOptions:
    """Where a server is asked to listen."""

    host: str = "127.0.0.1"
    port: int | None = None
    """None: the last server's, or the usual one, or any."""
    exposed: bool = False
    """Other machines may reach it."""
    tls: Tls | None = None


def check(place: ListenOptions) -> None:
    """Raises UsageError for an address that others can reach without being meant to, or for missing files."""
    if not place.exposed and not _is_loopback(place.host):
        raise UsageError(
            f"{place.host} lets other machines reach the server",
            hint="add --expose if that is meant; or keep it on this box and type on the other one: "
            f"ssh -N -L {FIRST_PORT}:127.0.0.1:{place.port or FIRST_PORT} THIS-BOX",
        )
    for path in (place.tls.certificate, place.tls.key) if place.tls else ():
        if not path.is_file():
            raise UsageError(f"there is no file {path}", hint="give --certificate and --certificate-key")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(home: Home, place: ListenOptions) -> socket.socket:
    """A socket on the asked port, or else on the last server's, on the usual one, or on any.

    Agents that outlive a server find the next one only on the same port. Raises ServerError.
    """
    last = read_address(home)
    usual = [*([last.port] if last else []), FIRST_PORT, 0]
    for candidate in [place.port] if place.port is not None else usual:
        try:
            return _listen(place.host, candidate)
        except OSError as problem:
            if problem.errno != errno.EADDRINUSE:
                where = f"{place.host} port {candidate}"
                raise ServerError(f"cannot listen on {where}: {problem.strerror}") from problem
    raise ServerError(
        f"port {place.port} is taken by another program", hint="choose another: --port 0 takes any"
    )


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


def url(bound: socket.socket, tls: Tls | None) -> str:
    """The address for clients on this box: a server on all addresses is reached by loopback."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
