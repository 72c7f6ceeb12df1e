"""A user's machine with its home and embedded server, and the commands typed on it."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kept_environment import kept_environment

from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server

FLAGS = [
    *("--model-size", "tiny", "--local-file", "examples/support_replies.jsonl", "--learning-rate", "3e-3"),
    *("--max-seq-length", "128", "--cpu"),
]
"""A short run but for its number of steps."""


@dataclass(frozen=True)
class Machine:
    """A user's machine without a W&B key."""

    folder: Path
    """HOME and KTO_SWEEP_HOME lie in it; the current directory of commands, unless there is another."""
    directory: Path | None = None

    @property
    def home(self) -> Home:
        return Home(self.folder / "kto-home")

    @property
    def environment(self) -> dict[str, str]:
        own = {"HOME": str(self.folder), "KTO_SWEEP_HOME": str(self.home.root), "OMP_NUM_THREADS": "1"}
        return kept_environment() | own

    def command(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kto_sweep", *args],
            cwd=self.directory or self.folder,
            env=self.environment | env,
            text=True,
            capture_output=True,
            check=False,
        )

    def run(self, *args: str, code: int = 0, **env: str) -> str:
        """What a command that must end with `code` prints."""
        done = self.command(*args, **env)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + (done.stderr if code else "")

    def train(self, *args: str, code: int = 0, **env: str) -> str:
        """What `kto-sweep train` prints."""
        return self.run("train", *FLAGS, *args, code=code, **env)

    def interrupted(self, *args: str, after: str, how: signal.Signals = signal.SIGINT, **env: str) -> str:
        """What `kto-sweep train` prints when Ctrl-C, or another signal, comes after a line with `after`."""
        lines = []
        with subprocess.Popen(
            [sys.executable, "-m", "kto_sweep", "train", *FLAGS, *args],
            cwd=self.folder,
            env=self.environment | env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if after in line:
                    process.send_signal(how)
                    after = "\0"
        expected = -how if how == signal.SIGKILL else 128 + how
        assert process.returncode == expected, "".join(lines)
        return "".join(lines)

    def folders(self) -> list[Path]:
        """Of the runs, the last one begun first."""
        return sorted(self.home.runs.glob("*"), key=lambda path: path.lstat().st_ctime, reverse=True)

    def python(self, code: str) -> Any:
        """The JSON that a script prints which talks to the embedded server through wandb."""
        address = ensure_server(self.home)
        server = {"WANDB_BASE_URL": address.url, "WANDB_API_KEY": address.key, "WANDB_SILENT": "true"}
        # A script that hangs says where.
        lines = ("import faulthandler, json, wandb", "faulthandler.dump_traceback_later(100, exit=True)")
        output = "\n".join([*lines, "api = wandb.Api()", f"print(json.dumps({code}))"])
        done = subprocess.run(
            [sys.executable, "-c", output],
            cwd=self.folder,
            env=self.environment | server,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def rows(folder: Path) -> list[dict[str, Any]]:
    """What a run has logged, without what depends on the clock."""
    clock = {"timestamp", "tokens_per_second"}
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in clock} for row in found]
