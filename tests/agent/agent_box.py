"""A box of its own: home folder, embedded server, commands."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kept_environment import kept_environment

from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server

ROOT = Path(__file__).parents[2]
SWEEP = """
method: grid
parameters:
  learning_rate:
    values: [3e-3, 1e-2]
  model_size: {value: tiny}
  dataset: {value: examples/support_replies.jsonl}
  batch_size: {value: 4}
  max_steps: {value: 4}
  max_length: {value: 128}
"""


@dataclass(frozen=True)
class Box:
    """One machine of a user, with no W&B key."""

    folder: Path
    """Current directory of every command; HOME and KTO_SWEEP_HOME lie in it."""

    @property
    def home(self) -> Home:
        return Home(self.folder / "kto-home")

    @property
    def environment(self) -> dict[str, str]:
        bin_folder = str(Path(sys.executable).parent)
        return kept_environment() | {
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "KTO_SWEEP_HOME": str(self.home.root),
            "OMP_NUM_THREADS": "1",
        }

    def popen(self, *args: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "kto_sweep", *args],
            cwd=self.folder,
            env=self.environment | env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, *args: str, code: int = 0, **env: str) -> str:
        """Output of a command that must end with `code`."""
        done = subprocess.run(
            [sys.executable, "-m", "kto_sweep", *args],
            cwd=self.folder,
            env=self.environment | env,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def json(self, *args: str) -> dict[str, Any]:
        answer = json.loads(self.run(*args, "--json"))
        assert isinstance(answer, dict)
        return answer

    def create(self, text: str = SWEEP) -> dict[str, Any]:
        (self.folder / "sweep.yaml").write_text(text)
        return self.json("create", "sweep.yaml")

    def wandb_environment(self) -> dict[str, str]:
        """What a person sets to use wandb's own tools with the embedded server."""
        address = ensure_server(self.home)
        return self.environment | {"WANDB_BASE_URL": address.url, "WANDB_API_KEY": address.key}

    def python(self, code: str) -> str:
        """Output of a script that talks to the embedded server through wandb."""
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=self.folder,
            env=self.wandb_environment() | {"WANDB_SILENT": "true"},
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
