"""GPUs that break, on a machine with a fake nvidia-smi."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from fake_worker import CLI
from machine import KTO_SWEEP
from sweep_harness import TWO_BY_TWO, SweepHarness, fake_losses


def gpu_harness(folder: Path, gpus: int, cli: tuple[str, ...] = CLI) -> SweepHarness:
    """A machine whose nvidia-smi lists this many GPUs."""
    tools = folder / "tools"
    tools.mkdir()
    listed = [f'echo "{index}, GPU-{os.getpid()}-{index}"\n' for index in range(gpus)]
    (tools / "nvidia-smi").write_text("".join(["#!/bin/sh\n", *listed]))
    (tools / "nvidia-smi").chmod(0o755)
    environ = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "TMPDIR": str(folder),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus))),
    }
    return SweepHarness(folder, TWO_BY_TWO, cli=cli, environ=environ, options=("--trials-per-gpu", "2"))


def workers_on(harness: SweepHarness, gpu: str) -> list[int]:
    pids = []
    for pid in harness.workers():
        with suppress(OSError):
            if f"CUDA_VISIBLE_DEVICES={gpu}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(
                b"\0"
            ):
                pids.append(pid)
    return pids


DYING = """
import os, signal

def before_step(config, step):
    if step == 5 and os.environ["CUDA_VISIBLE_DEVICES"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_trials_of_a_gpu_on_which_workers_die_move_to_another(tmp_path):
    harness = gpu_harness(tmp_path, 2)
    harness.script_training(DYING)
    try:
        harness.create()
        harness.start_agent()
        harness.wait(lambda: workers_on(harness, "1"), what="a worker on gpu 1")
        (worker,) = workers_on(harness, "1")
        os.kill(worker, signal.SIGSTOP)
        refused = harness.command("agent", harness.sweep[2], "--gpus", "1")
        os.kill(worker, signal.SIGCONT)
        assert refused.returncode == 2, refused.stdout
        assert "gpu 1 is in use" in refused.stderr
        harness.finish()
        assert "gpu 0 is no longer used" in harness.output()
        assert "nvidia-smi -i 0" in harness.output()
        harness.check(fake_losses(TWO_BY_TWO))
        assert len(harness.agents) == 1
    finally:
        harness.close()


BREAKING = """
import os, sys, time
from pathlib import Path

def wait(file):
    while not file.exists():
        time.sleep(0.05)

if "kto_sweep.train.worker" in sys.orig_argv:
    import torch
    from kto_sweep.train.packed.engine import Engine

    take = Engine.step
    folder = Path(os.environ["PHASES"])

    def step(self):
        if os.environ["CUDA_VISIBLE_DEVICES"] == "1":
            wait(folder / "begun")
            return take(self)
        (folder / "begun").touch()
        wait(folder / "break")
        raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")

    Engine.step = step
"""


@pytest.mark.slow
@pytest.mark.usefixtures("base_model")
def test_a_gpu_that_has_nothing_left_to_do_takes_the_trials_of_one_that_breaks(tmp_path):
    harness = gpu_harness(tmp_path, 2, KTO_SWEEP)
    harness.patch(BREAKING)
    harness.environ["PHASES"] = str(tmp_path)
    try:
        harness.create(max_steps=4)
        agent = harness.start_agent()
        harness.wait(lambda: harness.output().count(" finished ") == 2, what="the end of gpu 1's trials")
        harness.wait(lambda: not workers_on(harness, "1"), what="the end of gpu 1's worker")
        (tmp_path / "break").touch()
        assert agent.wait(120) == 0, harness.output()
        assert "gpu 0 is no longer used" in harness.output()
        assert {run.state for run in harness.runs()} == {"finished"}
        assert [len(run.rows) for run in harness.runs()] == [4] * 4
    finally:
        harness.close()


@pytest.mark.slow
def test_the_last_gpu_is_given_up_when_it_says_twice_that_it_is_broken(tmp_path):
    harness = gpu_harness(tmp_path, 1)
    try:
        harness.create()
        agent = harness.start_agent()
        for _ in range(2):
            harness.wait_for_progress(2)
            (worker,) = workers_on(harness, "0")
            with (harness.home.root / "workers" / "gpu-0.log").open("a") as log:
                log.write("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered\n")
            os.kill(worker, signal.SIGABRT)
            harness.wait(lambda gone=worker: gone not in harness.workers(), what="the worker's end")
        assert agent.wait(60) == 1, harness.output()
        output = harness.output()
        assert "uncorrectable ECC error" in output
        assert "nvidia-smi -i 0" in output
        assert "Traceback" not in output
        assert {run.state for run in harness.runs()} <= {"preempted", "preempting"}, output
        harness.start_agent("--cpu")
        harness.finish()
        harness.check(fake_losses(TWO_BY_TWO))
    finally:
        harness.close()
