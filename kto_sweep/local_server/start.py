"""Finds, starts and stops the embedded server of a home."""

import json
import os
import shutil
import signal
import ssl
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from kto_sweep.errors import ServerError
from kto_sweep.home import Home
from kto_sweep.http import CONNECTION_ERRORS
from kto_sweep.local_server.keys import home_id, key_path, read_key
from kto_sweep.local_server.login_tokens import login_link
from kto_sweep.local_server.process import read_address, server_pid

START_SECONDS = 60.0
"""How long a new server may take; a large database is checked first."""
STOP_SECONDS = 20.0
ROOM = 1 << 20
"""Bytes without which it cannot start, nor say why."""
LOG_LINES = 10
"""Lines of the server's log shown when it does not start."""


@dataclass(frozen=True)
class ServerAddress:
    """A server that answers."""

    url: str
    """As clients on this box reach it, without a slash at the end."""
    key: str = field(repr=False)
    """What clients send as API key."""
    key_file: Path
    """Where the key lies."""

    def login_link(self, path: str = "/") -> str:
        """A link that works once, within the hour: it lets a browser control sweeps, and shows it `path`."""
        return login_link(self.url, self.key, time.time(), path)


def running_server(home: Home) -> ServerAddress | None:
    """The server of this home, if one answers."""
    pid = server_pid(home)
    address = read_address(home)
    # The address of another process is an old one: the new server is still on its way up.
    if pid is None or address is None or address.pid != pid:
        return None
    try:
        key = read_key(home)
    except ServerError:
        return None
    if not _answers(address.url, home_id(key)):
        return None
    return ServerAddress(address.url, key, key_path(home))


def ensure_server(home: Home) -> ServerAddress:
    """The server of this home, started in the background unless it runs already.

    Raises ServerError with the last lines of its log when it does not come up.
    """
    deadline = time.monotonic() + START_SECONDS
    child: int | None = None
    while (found := running_server(home)) is None:
        if child is None and server_pid(home) is None:
            child = _start(home)
        elif child is not None and _has_ended(child) and server_pid(home) is None:
            raise _did_not_start(home, "it ended at once")
        if time.monotonic() > deadline:
            raise _did_not_start(home, f"no answer within {START_SECONDS:.0f} s")
        time.sleep(0.05)
    if child is not None and server_pid(home) != child and not _has_ended(child):
        os.kill(child, signal.SIGTERM)  # another one was faster; ours would serve once that is told to end
    return found


def stop_server(home: Home) -> bool:
    """True when a server ran and has ended. Raises ServerError when it does not end."""
    pid = server_pid(home)
    if pid is None:
        return False
    deadline = time.monotonic() + STOP_SECONDS
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return True
    except PermissionError as problem:
        raise ServerError(f"the server (process {pid}) belongs to another user") from problem
    while server_pid(home) == pid:
        if time.monotonic() > deadline:
            raise ServerError(
                f"the server (process {pid}) does not end",
                hint=f"look at {log_path(home)}, or: kill -9 {pid}",
            )
        time.sleep(0.05)
    return True


def log_path(home: Home) -> Path:
    """Where a server that was started in the background writes its log."""
    return home.server / "server.log"


def _answers(url: str, identity: str) -> bool:
    """Whether this home's server, and not any other, listens at `url`."""
    # No proxy: the server listens on this box. No check of its certificate: the home's id is the proof, and
    # nothing secret is sent.
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if url.startswith("https:"):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        handlers.append(urllib.request.HTTPSHandler(context=context))
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(f"{url}/ready", timeout=5) as response:
            told = json.loads(response.read(10_000))
    except CONNECTION_ERRORS:
        return False
    return isinstance(told, dict) and told.get("home_id") == identity


def _start(home: Home) -> int:
    """The process id of a server that was just started."""
    home.server.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    # Not subprocess: its objects want to be waited for, and this process may outlive us or we it.
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-m", "kto_sweep.server", "--home", str(home.root)],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log_path(home)), log_flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        # A session of its own: Ctrl-C in the shell that happened to start it must not end it.
        setsid=True,
    )


def _has_ended(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return True


def _did_not_start(home: Home, how: str) -> ServerError:
    try:
        lines = log_path(home).read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        lines = []
    hint = f"its log: {log_path(home)}"
    if shutil.disk_usage(home.root).free < ROOM:
        hint = f"no room is left on the disk of {home.root}: free some"
    return ServerError("\n".join([f"the embedded server did not start ({how})", *lines]), hint=hint)
