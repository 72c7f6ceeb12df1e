"""GPUs that break, on a box whose nvidia-smi names some; the workers train on its CPU."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from arena import TWO_BY_TWO, Arena, Losses


def gpu_arena(folder: Path, gpus: int) -> Arena:
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
    return Arena(folder, TWO_BY_TWO, environ, ("--trials-per-gpu", "2"))


def workers_on(arena: Arena, gpu: str) -> list[int]:
    found = []
    for pid in arena.workers():
        with suppress(OSError):
            if f"CUDA_VISIBLE_DEVICES={gpu}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(
                b"\0"
            ):
                found.append(pid)
    return found


DYING = """
import os, signal, sys

working = any("kto_sweep.train.worker" in word for word in sys.orig_argv)
if working and os.environ["CUDA_VISIBLE_DEVICES"] == "0":
    from kto_sweep.train.course import Course

    write = Course.write

    def write_or_die(self, step, *rest):
        if step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, step, *rest)

    Course.write = write_or_die
"""


def test_trials_of_a_gpu_on_which_workers_die_move_to_another(tmp_path, undisturbed: Losses):
    arena = gpu_arena(tmp_path, 2)
    arena.patch(DYING)
    try:
        arena.create()
        arena.start_agent()
        arena.wait(lambda: workers_on(arena, "1"), what="a worker on gpu 1")
        (worker,) = workers_on(arena, "1")
        os.kill(worker, signal.SIGSTOP)
        refused = subprocess.run(
            [sys.executable, "-m", "kto_sweep", "agent", arena.sweep[2], "--gpus", "1"],
            cwd=arena.folder, env=arena.environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        os.kill(worker, signal.SIGCONT)
        assert refused.returncode == 2, refused.stdout
        assert "gpu 1 is in use" in refused.stderr
        arena.finish()
        assert "gpu 0 is no longer used" in arena.said()
        assert "nvidia-smi -i 0" in arena.said()
        arena.check(undisturbed)
        assert len(arena.agents) == 1
    finally:
        arena.close()


BREAKING = """
import os, sys, time
from pathlib import Path

def wait(file):
    while not file.exists():
        time.sleep(0.05)

if any("kto_sweep.train.worker" in word for word in sys.orig_argv):
    import torch
    from kto_sweep.train.engine import Engine

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
def test_a_gpu_that_has_nothing_left_to_do_takes_the_trials_of_one_that_breaks(tmp_path):
    arena = gpu_arena(tmp_path, 2)
    arena.patch(BREAKING)
    arena.environ["PHASES"] = str(tmp_path)
    try:
        arena.create(max_steps=4)
        agent = arena.start_agent()
        arena.wait(lambda: arena.said().count(" finished ") == 2, what="the end of gpu 1's trials")
        arena.wait(lambda: not workers_on(arena, "1"), what="the end of gpu 1's worker")
        (tmp_path / "break").touch()
        assert agent.wait(120) == 0, arena.said()
        assert "gpu 0 is no longer used" in arena.said()
        assert {run.state for run in arena.runs()} == {"finished"}
        assert [len(run.rows) for run in arena.runs()] == [4] * 4
    finally:
        arena.close()


def test_the_last_gpu_is_given_up_when_it_says_twice_that_it_is_broken(tmp_path, undisturbed: Losses):
    arena = gpu_arena(tmp_path, 1)
    try:
        arena.create()
        agent = arena.start_agent()
        for _ in range(2):
            arena.wait_for_progress(2)
            (worker,) = workers_on(arena, "0")
            with (arena.home.root / "workers" / "gpu-0.log").open("a") as log:
                log.write("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered\n")
            os.kill(worker, signal.SIGABRT)
            arena.wait(lambda gone=worker: gone not in arena.workers(), what="the worker's end")
        assert agent.wait(60) == 1, arena.said()
        said = arena.said()
        assert "uncorrectable ECC error" in said
        assert "nvidia-smi -i 0" in said
        assert "Traceback" not in said
        assert {run.state for run in arena.runs()} <= {"preempted", "preempting"}, said
        arena.start_agent("--cpu")
        arena.finish()
        arena.check(undisturbed)
    finally:
        arena.close()
