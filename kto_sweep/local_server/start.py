"""Finds, starts and stops a home's embedded server."""

import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from kto_sweep.errors import ServerError
from kto_sweep.home import Home
from kto_sweep.http import NoAnswerError, get
from kto_sweep.json_file import parse_json
from kto_sweep.local_server.keys import home_id, key_path, read_key
from kto_sweep.local_server.login_tokens import login_link
from kto_sweep.local_server.process import read_address, server_pid

START_TIMEOUT = 60.0
"""Seconds to wait for a new server; it checks the database first, which takes time when that is large."""
SLOW_START = 3.0
"""Seconds after which a line on the terminal says what is being waited for."""
STOP_TIMEOUT = 20.0
"""Seconds to wait for the server to exit."""
MIN_FREE_BYTES = 1 << 20
"""With less free disk space the server can neither start nor write its log."""
LOG_LINES = 10
"""Last lines of the server's log to show when it fails to start."""


@dataclass(frozen=True)
class LocalServer:
    """A running server: its URL and key."""

    url: str
    """URL for clients on this machine, without a trailing slash."""
    key: str = field(repr=False)
    """API key that clients send."""
    key_file: Path
    """File that holds the key."""

    def login_link(self, path: str = "/") -> str:
        """A link to the page at `path` that works once and logs the browser in."""
        return login_link(f"{self.url}{path}", self.key)


def running_server(home: Home) -> LocalServer | None:
    """This home's server, or None when it does not answer."""
    pid = server_pid(home)
    address = read_address(home)
    # The address belongs to an earlier process: the new server is still starting.
    if pid is None or address is None or address.pid != pid:
        return None
    try:
        key = read_key(home)
    except ServerError:
        return None
    if not _answers(address.url, home_id(key)):
        return None
    return LocalServer(address.url, key, key_path(home))


def ensure_server(home: Home) -> LocalServer:
    """This home's server, started in the background if it is not running.

    Raises ServerError with the last lines of the server's log when it does not start.
    """
    begin = time.monotonic()
    child: int | None = None
    is_said = False
    while (server := running_server(home)) is None:
        if child is None and server_pid(home) is None:
            child = _start(home)
        elif child is not None and _has_ended(child) and server_pid(home) is None:
            raise _start_error(home, "it exited at once")
        waited = time.monotonic() - begin
        if waited > START_TIMEOUT:
            raise _start_error(home, f"no answer within {START_TIMEOUT:.0f} s")
        if waited > SLOW_START and not is_said and sys.stderr.isatty():
            print("Starting the embedded server, which first checks its database", file=sys.stderr)
            is_said = True
        time.sleep(0.05)
    if is_said:
        print(f"The embedded server started in {time.monotonic() - begin:.0f} s", file=sys.stderr)
    if child is not None and server_pid(home) != child and not _has_ended(child):
        os.kill(
            child, signal.SIGTERM
        )  # lost the race to another process; ours would take over when that one stops
    return server


def stop_server(home: Home) -> bool:
    """True when a server was running and has exited. Raises ServerError when it does not exit."""
    pid = server_pid(home)
    if pid is None:
        return False
    deadline = time.monotonic() + STOP_TIMEOUT
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return True
    except PermissionError as problem:
        raise ServerError(f"the server (process {pid}) belongs to another user") from problem
    while server_pid(home) == pid:
        if time.monotonic() > deadline:
            raise ServerError(
                f"the server (process {pid}) does not exit",
                hint=f"see {log_path(home)}, or run: kill -9 {pid}",
            )
        time.sleep(0.05)
    return True


def log_path(home: Home) -> Path:
    """Log file of a server started in the background."""
    return home.server / "server.log"


def _answers(url: str, expected_id: str) -> bool:
    """Whether the server at `url` is this home's server."""
    try:
        # The home id identifies the server, not its certificate; the request carries no secret.
        answer = get(f"{url}/ready", timeout=5, limit=10_000, verify=False)
        ready = parse_json(answer.body)
    except (NoAnswerError, ValueError):
        return False
    return answer.ok and isinstance(ready, dict) and ready.get("home_id") == expected_id


def _start(home: Home) -> int:
    """Starts a server in the background; its process id."""
    home.server.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    # Not subprocess: a Popen must be waited for, and the server may outlive this process or the reverse.
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-m", "kto_sweep.server", "--home", str(home.root)],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log_path(home)), log_flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        # Its own session, so that Ctrl-C in the starting shell does not stop the server.
        setsid=True,
    )


def _has_ended(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return True


def _start_error(home: Home, reason: str) -> ServerError:
    try:
        lines = log_path(home).read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        lines = []
    hint = f"see the log: {log_path(home)}"
    if shutil.disk_usage(home.root).free < MIN_FREE_BYTES:
        hint = f"the disk of {home.root} is full: free some space"
    return ServerError("\n".join([f"the embedded server did not start ({reason})", *lines]), hint=hint)
