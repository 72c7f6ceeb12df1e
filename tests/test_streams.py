"""What a command does when its output has nowhere to go, and when its folders are unusual."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

GENERATE = "{python} -m kto_sweep generate grid my.yaml --model-size tiny --dataset rows.jsonl --lr 1e-3,3e-3"
ROW = '{"prompt": "Question %d?", "completion": "An answer", "label": %s}\n'


def run_in_shell(folder: Path, command: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """The result of a command of bash, in which {python} is this Python."""
    (folder / "rows.jsonl").write_text(
        "".join(ROW % (number, str(number % 2 == 0).lower()) for number in range(40))
    )
    return subprocess.run(
        ["bash", "-c", "set -o pipefail; " + command.format(python=shlex.quote(sys.executable))],
        cwd=folder,
        env=os.environ | {"KTO_SWEEP_HOME": str(folder / "home")} | env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [
        (">&- 2>&- <&-", 0, ""),
        ("| true", 0, ""),
        (">/dev/full", 1, "standard output: No space left on device; the rest was done"),
    ],
)
def test_a_command_does_its_work_whatever_its_streams_are(
    tmp_path: Path, streams: str, code: int, said: str
) -> None:
    done = run_in_shell(tmp_path, f"{GENERATE} {streams}")
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "learning_rate" in (tmp_path / "my.yaml").read_text()


def test_a_deleted_current_folder_is_refused(tmp_path: Path) -> None:
    done = run_in_shell(tmp_path, "mkdir gone; cd gone; rmdir ../gone; {python} -m kto_sweep status")
    assert (done.returncode, done.stderr) == (
        2,
        "Error: the current folder was deleted\nHint: cd to another folder\n",
    )


@pytest.mark.parametrize(("home", "code"), [("/a" * 2000, 2), ("/" + "a" * 300, 2)])
def test_a_home_with_a_name_that_no_file_can_have_is_an_error(tmp_path: Path, home: str, code: int) -> None:
    done = run_in_shell(tmp_path, "{python} -m kto_sweep status", KTO_SWEEP_HOME=home)
    assert done.returncode == code
    assert "KTO_SWEEP_HOME" in done.stderr
    assert "bug" not in done.stderr


def test_unwritable_output_stops_nothing() -> None:
    code = (
        "import sys;from kto_sweep.streams import SafeStream;out=SafeStream(sys.stdout);"
        "sys.stdin.readline();[print('x'*1000,file=out,flush=True) for _ in range(200)];"
        "print('survived',file=sys.stderr)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None  # communicate would read it
    _, said = process.communicate(b"\n")
    assert (process.returncode, said.strip()) == (0, b"survived")
