"""Python processes for tests without the seconds that each spends on importing wandb or torch.

At the first request a server imports what most commands import. It forks a process for each request: with its
own arguments, environment, folder and files, and the exit of a normal process. All test processes share the
servers, which end with the process that runs pytest.
"""

import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from forked_python import HEADER_BYTES, TORCH, WANDB, request

PRELOADED = {
    WANDB: (
        *("httpx", "filelock", "rich.console", "rich.table", "wandb", "wandb.apis.public", "transformers"),
        *("kto_sweep.cli.agent", "kto_sweep.cli.compare", "kto_sweep.cli.create", "kto_sweep.cli.status"),
        *("kto_sweep.cli.train", "kto_sweep.agent.run_agent", "kto_sweep.local_server.start"),
        *("kto_sweep.sweep.create", "kto_sweep.train_command.prepare", "kto_sweep.wandb_client.reader"),
    ),
    TORCH: (
        *("torch", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama"),
        *("kto_sweep.train.worker.loop", "kto_sweep.train.chat", "kto_sweep.train.trl.trainer"),
    ),
}
"""Modules that each server imports."""
MAX_FILES = 64


def start() -> Callable[[], None]:
    """Start both servers for this process and its children; the function that ends them."""
    folder = tempfile.TemporaryDirectory()
    servers = [_start(name, f"{folder.name}/{name.lower()}") for name in PRELOADED]

    def close() -> None:
        for server in servers:
            assert server.stdin is not None
            server.stdin.close()
            server.wait()
        folder.cleanup()

    return close


def _start(name: str, address: str) -> "subprocess.Popen[bytes]":
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()  # before the server runs: the first request waits for it
        os.environ[name] = address
        command = [sys.executable, __file__, name, str(listener.fileno())]
        return subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])


def run(
    args: Sequence[str], folder: Path, environ: Mapping[str, str], server: str = WANDB
) -> "subprocess.CompletedProcess[str]":
    """The result of `python ARGS`, where ARGS are `-m MODULE ...` or `-c CODE ...`."""
    with Path(os.devnull).open() as null, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        streams = {0: null.fileno(), 1: out.fileno(), 2: err.fileno()}
        with request(server, args, str(folder), environ, streams) as connection:
            status = connection.makefile("rb").read()
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
    return subprocess.CompletedProcess(list(args), int(status), *texts)


def serve(name: str, listener: socket.socket) -> None:
    """Fork a process for each request until this server's owner has ended; returns in those processes too."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # monitors are not waited for
    loaded = False
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if listener not in ready:
            return
        connection, _ = listener.accept()
        if not loaded:
            for module in PRELOADED[name]:
                importlib.import_module(module)
            gc.freeze()  # a process that ends need not free what it shares
            loaded = True
        with warnings.catch_warnings():
            # Python 3.12 warns of a thread of pyarrow's allocator, which does without it after a fork.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            break
        connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in tests that a shell runs with &
    listener.close()
    length, files, _, _ = socket.recv_fds(connection, HEADER_BYTES, MAX_FILES)
    about = json.loads(connection.makefile("rb").read(int.from_bytes(length, "big")))
    if child := os.fork():
        for file in files:
            os.close(file)
        _monitor(child, connection)
        os._exit(0)
    connection.close()
    _become(about, files)


def _monitor(child: int, connection: socket.socket) -> None:
    """Pass signals to the child, and its exit status to the client. A client that is gone ends the child."""
    process = os.pidfd_open(child)
    while process not in select.select([process, connection], [], [])[0]:
        number = connection.recv(1)
        os.kill(child, number[0] if number else signal.SIGKILL)
        if not number:
            break
    _, status = os.waitpid(child, 0)
    with suppress(BrokenPipeError):
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def _become(about: Mapping[str, object], files: Sequence[int]) -> None:
    """Run the requested Python in this process."""
    _open(dict(zip(about["files"], files, strict=True)))  # type: ignore[call-overload]
    os.chdir(str(about["folder"]))
    os.environ.clear()
    os.environ.update(about["environ"])  # type: ignore[call-overload]
    if "PYTHONUNBUFFERED" in os.environ:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    _refresh_modules()
    kind, what, *rest = about["args"]  # type: ignore[misc]
    sys.orig_argv = [sys.executable, kind, what, *rest]
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:1] = [str(Path.cwd()), *(path for path in paths if path not in sys.path)]
    if (customize := Path(sys.path[1], "sitecustomize.py")).exists():
        runpy.run_path(str(customize))
    if kind == "-m":
        sys.argv = [what, *rest]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *rest]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)


def _open(files: Mapping[int, int]) -> None:
    """Give these files, by the number that each shall have, their numbers."""
    # First above all numbers, because each may be taken by another of the files.
    free = max(files) + 1
    copies = {number: fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, free) for number, file in files.items()}
    for file in files.values():
        os.close(file)
    for number, copy in copies.items():
        os.dup2(copy, number)
        os.close(copy)


def _refresh_modules() -> None:
    """Give this process what modules made for the server when they were imported."""
    from huggingface_hub import constants

    importlib.reload(constants)  # from environment variables
    tempfile.tempdir = None  # found from environment variables, and kept
    # wandb's folders for files on their way: the first process that ends would remove them.
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        made = finalizer.peek()
        if made is not None and isinstance(made[0], tempfile.TemporaryDirectory):
            finalizer.detach()
            made[0].__init__()  # type: ignore[misc]


if __name__ == "__main__":
    serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
