"""GPUs that break, on a box whose nvidia-smi names two; the workers train on its CPU."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from arena import TWO_BY_TWO, Arena, Losses

TWO_GPUS = """#!/bin/sh
echo "0, GPU-{mark}-0"
echo "1, GPU-{mark}-1"
"""


def gpu_arena(folder: Path) -> Arena:
    tools = folder / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(TWO_GPUS.format(mark=os.getpid()))
    (tools / "nvidia-smi").chmod(0o755)
    environ = {"PATH": f"{tools}:{os.environ['PATH']}", "TMPDIR": str(folder)}
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


def test_trials_of_a_gpu_on_which_workers_die_move_to_another(tmp_path, undisturbed: Losses):
    arena = gpu_arena(tmp_path)
    try:
        arena.create()
        arena.start_agent()
        arena.wait(lambda: arena.said().count("trial") >= 4, what="four trials")
        refused = subprocess.run(
            [sys.executable, "-m", "kto_sweep", "agent", arena.sweep[2], "--gpus", "1"],
            cwd=arena.folder, env=arena.environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert refused.returncode == 2, refused.stdout
        assert "gpu 1 is taken" in refused.stderr
        killed: set[int] = set()

        def retired() -> bool:
            for pid in workers_on(arena, "0"):
                if pid not in killed and arena.said().count("gpu 0: ready") > len(killed):
                    killed.add(pid)
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            return "gpu 0 is used no more" in arena.said()

        arena.wait(retired, what="the end of gpu 0")
        assert "nvidia-smi -i 0" in arena.said()
        arena.finish()
        arena.check(undisturbed)
        assert len(arena.agents) == 1
    finally:
        arena.close()
