"""The scripts that keep an agent running on other people's machines."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from arena import ROOT, Arena

EXAMPLES = ROOT / "examples"


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(EXAMPLES / "kto-sweep.service")],
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_slurm_job_hands_its_signal_on_and_ends_as_its_agent(tmp_path):
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    arena = Arena(tmp_path, {"seed": [1]}, environ)
    try:
        arena.create(max_steps=2000)
        with (tmp_path / "agent-01.log").open("wb") as log:
            job = subprocess.Popen(
                ["bash", str(EXAMPLES / "slurm.sh"), arena.sweep[2]],
                cwd=tmp_path, env=arena.environment(), stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        arena.wait(lambda: arena.steps() > 2, what="some steps")
        job.send_signal(signal.SIGTERM)
        assert job.wait(90) == 143
        assert "put back" in arena.said()
    finally:
        arena.close()
