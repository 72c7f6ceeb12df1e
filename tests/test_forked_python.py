"""The stand-in for `python` behaves like it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked_python import executable, forked_python
from python_forkserver import run

WANDB = forked_python()[-1]
ABOUT = """
import json, os, sys, tempfile
here = [os.getcwd(), tempfile.gettempdir(), sys.argv, sys.orig_argv, os.environ.get("SITE"), __name__]
print(json.dumps([*here, "wandb" in sys.modules, sys.stdin.read()]))
"""


def test_a_process_has_its_own_folder_environment_arguments_and_streams(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import os; os.environ['SITE'] = 'customized'")
    environ = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(tmp_path / "site")}
    command = [*forked_python(), "-B", "-c", ABOUT, "x"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, input="typed", capture_output=True, text=True, check=True
    )
    here = [str(tmp_path), str(tmp_path), ["-c", "x"], [sys.executable, "-c", ABOUT, "x"]]
    assert json.loads(done.stdout) == [*here, "customized", "__main__", True, "typed"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("code", "status"),
    [("import sys; sys.exit(3)", 3), ("1 / 0", 1), ("import os; os.kill(os.getpid(), 9)", -9), ("", 0)],
)
def test_the_exit_status_is_that_of_the_process(tmp_path: Path, code: str, status: int) -> None:
    python = executable(tmp_path, WANDB)
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert run(("-c", code), tmp_path, os.environ).returncode == status
    assert ("ZeroDivisionError" in done.stderr) == (code == "1 / 0")


SLEEPING = """
import os, time
try:
    print(os.getpid(), flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_the_process_and_none_survives_its_stand_in(number: signal.Signals) -> None:
    command = [*forked_python(), "-c", SLEEPING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(number)
        assert process.stdout.read() == ("interrupted\n" if number == signal.SIGINT else "")
    assert process.returncode == (0 if number == signal.SIGINT else -number)
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.01)
