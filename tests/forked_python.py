"""Stands for `python` in a test: its process is forked from one that has imported the libraries.

    python forked_python.py SERVER [OPTION ...] -m MODULE ... | -c CODE ...

To the test the process is this one. It passes signals on to the process that python_forkserver.py forks, and
exits as that does. When this process is killed, so is the forked one. Options of Python are ignored.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

WANDB = "KTO_SWEEP_TEST_WANDB_FORKSERVER"
"""Environment variable with the address of the server for what users run."""
TORCH = "KTO_SWEEP_TEST_TORCH_FORKSERVER"
"""Environment variable with the address of the server for what computes: workers, merge, chat."""
HEADER_BYTES = 8
"""A request begins with its length and the open files."""


def forked_python(server: str = WANDB) -> tuple[str, ...]:
    """A command that does what `python` does."""
    return (sys.executable, "-SE", __file__, server)


def executable(folder: Path, server: str) -> Path:
    """A file in `folder` that does what `python` does, for who takes a path and no arguments."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nexec {" ".join(forked_python(server))} "$@"\n')
    path.chmod(0o755)
    return path


WORKER = (*forked_python(TORCH), "-m", "kto_sweep.train.worker")
"""The command of a real worker."""
CLI = ("-c", f"import sys; from kto_sweep.cli import run; sys.exit(run(sys.argv[1:], worker={WORKER}))")
"""Arguments of a Python that is `kto-sweep` with forked workers."""


def request(
    server: str, args: Sequence[str], folder: str, environ: Mapping[str, str], files: Mapping[int, int]
) -> socket.socket:
    """The connection to a new process whose file descriptors are copies of `files`.

    A byte that is sent is a signal to the process; its exit status is what can be read, followed by the end.
    When the connection is closed, the process is killed.
    """
    about = {"args": args, "folder": folder, "environ": dict(environ), "files": list(files)}
    text = json.dumps(about).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[server])
    socket.send_fds(connection, [len(text).to_bytes(HEADER_BYTES, "big")], list(files.values()))
    connection.sendall(text)
    return connection


def main(server: str, *args: str) -> None:
    while args[0] not in ("-m", "-c"):  # -B and the like: too late
        args = args[1:]
    # Reading the folder opens it too, and closes it.
    files = [int(path.name) for path in list(Path("/proc/self/fd").iterdir()) if path.exists()]
    process = request(server, args, str(Path.cwd()), os.environ, {file: file for file in files})
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: process.send(bytes([number])))
    for file in files:
        os.close(file)  # the ends of its pipes are the other process's alone
    status = int(process.makefile("rb").read())
    if status >= 0:
        os._exit(status)
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)


if __name__ == "__main__":
    main(*sys.argv[1:])
