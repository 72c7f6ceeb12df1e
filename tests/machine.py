"""A user's machine for a test: a home folder, an embedded server and a clean environment of its own."""

import fcntl
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
import python_forkserver
from fake_worker import SCRIPT
from forked_python import TORCH, WANDB, forked_python, request
from printed_commands import check_output

from kto_sweep.home import Home
from kto_sweep.local_server.start import LocalServer, ensure_server, stop_server

ROOT = Path(__file__).parents[1]
INHERITED = ("PYTHONPATH", "LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES", WANDB, TORCH)
"""Environment variables that commands get from the tests. None of them is a key, a home or a setting."""
COMPUTING = frozenset({"merge", "chat", "--samples"})
"""Arguments of commands that import torch."""
KTO_SWEEP = ("-m", "kto_sweep")
"""Arguments of a Python that is `kto-sweep`, with workers that train."""


@contextmanager
def made_once(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A path that all test processes share; who is first makes what belongs there, the others wait."""
    root = factory.getbasetemp()
    folder = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder / name


@dataclass
class Machine:
    """Runs `kto-sweep` and Python like a user without a W&B key."""

    folder: Path
    """HOME of every command. It contains `home`."""
    _: KW_ONLY
    directory: Path | None = None
    """Current directory of every command; None: `folder`."""
    environ: dict[str, str] = field(default_factory=dict)
    """Environment variables of every command, besides the standard ones."""
    cli: tuple[str, ...] = KTO_SWEEP
    """Arguments of the Python that runs a command; `fake_worker.CLI`: with workers that need no torch."""

    @property
    def home(self) -> Home:
        return Home(self.folder / "home")

    @cached_property
    def address(self) -> LocalServer:
        """URL of the embedded server. The first access starts it; a server that died is not restarted."""
        return ensure_server(self.home)

    @cached_property
    def http(self) -> httpx.Client:
        """An HTTP client of the embedded server that sends its key."""
        auth = ("api", self.address.key)
        return httpx.Client(base_url=self.address.url, auth=auth, trust_env=False, timeout=60)

    @property
    def environment(self) -> dict[str, str]:
        """All environment variables of a command."""
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        own = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "KTO_SWEEP_HOME": str(self.home.root),
            "OMP_NUM_THREADS": "1",
        }
        return inherited | own | self.environ

    def server_environment(self) -> dict[str, str]:
        """The variables that make wandb's own tools use the embedded server; starts it if needed."""
        address = ensure_server(self.home)
        return {"WANDB_BASE_URL": address.url, "WANDB_API_KEY": address.key}

    def add_model(self, folder: Path) -> None:
        """Copy a base model into the home, which saves each worker the seconds of making its own."""
        shutil.copytree(folder, self.home.models / folder.name, dirs_exist_ok=True)

    def script_training(self, before_step: str) -> None:
        """Have the fake workers run this code, which defines `before_step(config, step)`."""
        self.home.root.mkdir(parents=True, exist_ok=True)
        (self.home.root / SCRIPT).write_text(before_step)

    def patch(self, code: str) -> None:
        """Run `code` at the start of each Python process of this machine."""
        site = self.folder / "site"
        site.mkdir(parents=True)
        (site / "sitecustomize.py").write_text(code)
        paths = [str(site), self.environment.get("PYTHONPATH", "")]
        self.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

    def start_python(self, *args: str, **env: str) -> "subprocess.Popen[str]":
        """A running Python process; its stdout and stderr come through one pipe."""
        return self._start(*forked_python(), *args, **env)

    def start(self, *args: str, **env: str) -> "subprocess.Popen[str]":
        """A running kto-sweep command; its stdout and stderr come through one pipe."""
        return self._start(sys.executable, *self.cli, *args, **env)

    def _start(self, *command: str, **env: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command,
            cwd=self.directory or self.folder,
            env=self.environment | env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def command(self, *args: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """The result of a kto-sweep command, with any exit code."""
        server = WANDB if COMPUTING.isdisjoint(args) else TORCH
        done = self._fork((*self.cli, *args), env, server)
        if not {"--help", "--version", "--json"} & {*args}:
            check_output(done.stdout + done.stderr)  # a printed command must run as it stands
        return done

    def python(self, *args: str, code: int = 0, **env: str) -> str:
        """Output of a Python process that must exit with `code`: stdout, and stderr if `code` is not 0."""
        return _output(self._fork(args, env), code)

    def run(self, *args: str, code: int = 0, **env: str) -> str:
        """Output of a kto-sweep command that must exit with `code`: stdout, and stderr if `code` is not 0."""
        return _output(self.command(*args, **env), code)

    def on_terminal(self, *args: str, **env: str) -> str:
        """What a kto-sweep command that must succeed prints on a terminal."""
        ours, theirs = pty.openpty()
        files = dict.fromkeys((0, 1, 2), theirs)
        environ = self.environment | {"TERM": "xterm", "NO_COLOR": "1"} | env
        folder = str(self.directory or self.folder)
        output = b""
        with request(WANDB, (*self.cli, *args), folder, environ, files) as connection:
            os.close(theirs)
            with suppress(OSError):  # when the process has ended
                while part := os.read(ours, 1 << 16):
                    output += part
            status = int(connection.makefile("rb").read())
        os.close(ours)
        assert status == 0, output
        return output.decode()

    def json(self, *args: str, **env: str) -> dict[str, Any]:
        """The object that a kto-sweep command prints with --json."""
        answer = json.loads(self.run(*args, "--json", **env))
        assert isinstance(answer, dict)
        return answer

    def create_sweep(self, text: str, **env: str) -> dict[str, Any]:
        """The output of `kto-sweep create --json` for a sweep file with this text."""
        (self.folder / "sweep.yaml").write_text(text)
        return self.json("create", "sweep.yaml", **env)

    def api(self, expression: str) -> Any:
        """The value of a Python expression, through JSON; `api` is wandb.Api on the embedded server."""
        script = f"""
import faulthandler, json, wandb
faulthandler.dump_traceback_later(100, exit=True)  # a script that hangs says where
api = wandb.Api()
print("RESULT " + json.dumps({expression}))
"""
        environ = {"WANDB_SILENT": "true", **self.server_environment()}
        output = _output(self._fork(("-c", script), environ))
        return json.loads(output.rpartition("RESULT ")[2])

    def close(self) -> None:
        if "http" in vars(self):  # open: a test has used it
            self.http.close()
            del self.http
        stop_server(self.home)

    def _fork(
        self, args: tuple[str, ...], env: Mapping[str, str], server: str = WANDB
    ) -> "subprocess.CompletedProcess[str]":
        return python_forkserver.run(args, self.directory or self.folder, self.environment | env, server)


def _output(process: "subprocess.CompletedProcess[str]", code: int = 0) -> str:
    assert process.returncode == code, process.stdout + process.stderr
    return process.stdout + (process.stderr if code else "")
