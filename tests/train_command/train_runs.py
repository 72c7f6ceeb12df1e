"""Short runs of `kto-sweep train`, and what they leave behind."""

import json
import signal
from pathlib import Path
from typing import Any

from machine import Machine

FLAGS = [
    *("--model-size", "tiny", "--local-file", "examples/support_replies.jsonl", "--learning-rate", "3e-3"),
    *("--max-seq-length", "128", "--cpu"),
]
"""A run of the tiny model; each test adds the number of steps."""
SLOW_STEP_9 = """
import time

def before_step(config, step):
    time.sleep(3 if step == 9 else 0)
"""
"""For fake workers, whose runs would end before a signal after step 7 reaches them."""


def train(machine: Machine, *args: str, code: int = 0, **env: str) -> str:
    """Output of `kto-sweep train`, which must exit with `code`."""
    return machine.run("train", *FLAGS, *args, code=code, **env)


def interrupted(
    machine: Machine, *args: str, after: str, how: signal.Signals = signal.SIGINT, **env: str
) -> str:
    """Output of `kto-sweep train`, interrupted by a signal (default SIGINT) after a line with `after`."""
    lines = []
    with machine.start("train", *FLAGS, *args, **env) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if after in line:
                process.send_signal(how)
                after = "\0"
    expected = -how if how == signal.SIGKILL else 128 + how
    assert process.returncode == expected, "".join(lines)
    return "".join(lines)


def run_folders(machine: Machine) -> list[Path]:
    """Folders of the runs, the newest first."""
    return sorted(machine.home.runs.glob("*"), key=lambda path: path.lstat().st_ctime, reverse=True)


def rows(folder: Path) -> list[dict[str, Any]]:
    """A run's logged rows, without values that depend on the clock."""
    clock = {"timestamp", "tokens_per_second"}
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in clock} for row in logged]
