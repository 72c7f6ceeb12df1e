"""Python processes for tests without the second that each spends on importing wandb.

A server imports what most commands import, and forks a process for each request: with its own arguments,
environment, folder and streams, and the exit of a normal process.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

PRELOADED = (
    *("httpx", "filelock", "rich.console", "rich.table", "wandb", "wandb.apis.public"),
    *("kto_sweep.cli.compare", "kto_sweep.cli.create", "kto_sweep.cli.status", "kto_sweep.sweep.create"),
    *("kto_sweep.local_server.start", "kto_sweep.wandb_client.reader"),
)
_HEADER = 8
"""Bytes of a request's length."""


def run(args: Sequence[str], folder: Path, environ: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """The result of `python ARGS`, where ARGS are `-m MODULE ...` or `-c CODE ...`."""
    request = json.dumps({"args": args, "folder": str(folder), "environ": dict(environ)}).encode()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(_address())
            length = len(request).to_bytes(_HEADER, "big")
            socket.send_fds(connection, [length], [out.fileno(), err.fileno()])
            connection.sendall(request)
            status = connection.makefile("rb").read()
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
    return subprocess.CompletedProcess(list(args), int(status), *texts)


@cache
def _address() -> str:
    """The server of this test process, started by the first call."""
    folder = tempfile.TemporaryDirectory()
    address = f"{folder.name}/socket"
    server = subprocess.Popen([sys.executable, __file__, address], stdout=subprocess.PIPE)
    assert server.stdout is not None
    server.stdout.readline()

    def close() -> None:
        server.kill()
        server.wait()
        folder.cleanup()

    atexit.register(close)
    return address


def serve(address: str) -> int | None:
    """Fork a process for each request; in that process the exit status of a failed start, else None."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # a process that ends need not free what it shares
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # monitors are not waited for
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, streams, _, _ = socket.recv_fds(connection, _HEADER, 2)
    request = json.loads(connection.makefile("rb").read(int.from_bytes(length, "big")))
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    connection.close()
    _become(request, streams)
    return None


def _become(request: Mapping[str, object], streams: Sequence[int]) -> None:
    """Run the requested Python in this process."""
    null = os.open(os.devnull, os.O_RDONLY)
    for number, stream in enumerate((null, *streams)):
        os.dup2(stream, number)
    for stream in (null, *streams):
        os.close(stream)
    os.chdir(str(request["folder"]))
    os.environ.clear()
    os.environ.update(request["environ"])  # type: ignore[call-overload]
    kind, what, *rest = request["args"]  # type: ignore[misc]
    sys.orig_argv = [sys.executable, kind, what, *rest]
    sys.path[0] = str(Path.cwd())
    if kind == "-m":
        sys.argv = [what, *rest]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *rest]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1]))
