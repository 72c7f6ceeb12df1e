"""The systemd unit and the Slurm script that keep an agent running."""

import os
import shutil
import signal
import subprocess

import pytest
from machine import KTO_SWEEP, ROOT
from sweep_harness import SweepHarness

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
@pytest.mark.usefixtures("base_model")
def test_a_slurm_job_hands_its_signal_on_and_ends_as_its_agent(tmp_path):
    harness = SweepHarness(tmp_path, {"seed": [1]}, cli=KTO_SWEEP)
    try:
        harness.create(max_steps=2000)
        with (tmp_path / "agent-01.log").open("wb") as log:
            job = subprocess.Popen(
                ["bash", str(EXAMPLES / "slurm.sh"), harness.sweep[2]],
                cwd=tmp_path, env=harness.environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        harness.wait(lambda: harness.steps() > 2, what="some steps")
        job.send_signal(signal.SIGTERM)
        assert job.wait(90) == 143
        assert "requeued" in harness.output()
    finally:
        harness.close()
