"""Faults on real GPUs: is every cell of a grid trained once, with every row?

    PYTHONPATH=. python benchmarks/gpu_accidents.py             # both, as root: 5 minutes
    PYTHONPATH=. python benchmarks/gpu_accidents.py --only assert

assert   a kernel in the worker on the last GPU indexes out of bounds: CUDA fails in that process from then
         on, and the trials continue in another one
gone     the device file of the last GPU cannot be opened, as after a GPU has fallen off the bus, and its
         worker is killed: the trials move to GPU 0. On a machine with one GPU the agent exits, and another
         one continues the trials when the GPU is back

Exits with 1, and keeps the files, if anything was lost or done twice. Prints the largest difference from the
losses of a grid without faults, trained on GPU 0 first, and does not judge it: in bf16 the other trials of a
step change the last bits of a loss, which the learning rate can amplify. On a CPU chaos.py judges it.
Changes no setting of a GPU: the device file is hidden in a mount namespace of this program's own.
"""

import argparse
import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))

import python_forkserver
from machine import KTO_SWEEP
from sweep_harness import Losses, SweepHarness

STEPS = 300
AXES: dict[str, list[Any]] = {"learning_rate": [0.0001, 0.0003], "seed": [1, 2]}
ASSERTING = """
import os, sys, threading, time

def work():
    while not os.path.exists(os.environ["TRIGGER"]):
        time.sleep(0.1)
    os.remove(os.environ["TRIGGER"])
    import torch
    torch.zeros(4, device="cuda")[torch.full((4,), 1 << 20, device="cuda")]
    torch.cuda.synchronize()

if "kto_sweep.train.worker" in sys.orig_argv:
    threading.Thread(target=work, daemon=True).start()
"""
"""Code that each Python process of the machine runs when it starts."""


def gpu_harness(folder: Path, gpus: str) -> SweepHarness:
    """A machine with these GPUs, where a worker's kernel asserts once the file `trigger` exists."""
    environ = {
        "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),
        "TRIGGER": str(folder / "trigger"),
    }
    options = ("--trials-per-gpu", "2", "--gpus", gpus)
    harness = SweepHarness(folder, AXES, environ=environ, options=options, cli=KTO_SWEEP)
    harness.patch(ASSERTING)
    harness.create(max_steps=STEPS, eval_steps=50)
    return harness


def gpu_indices() -> list[str]:
    """Indices of the GPUs, from nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def assert_in_kernel(harness: SweepHarness, _gpus: Sequence[str]) -> None:
    """Make a kernel of a worker assert."""
    trigger = harness.folder / "trigger"
    trigger.touch()
    harness.wait(lambda: not trigger.exists(), what="the assertion")


def remove_gpu(harness: SweepHarness, gpus: Sequence[str]) -> None:
    """Make the last GPU impossible to open, and kill its worker."""
    file = f"/dev/nvidia{gpus[-1]}"
    subprocess.run(["mount", "--bind", file, file], check=True)
    subprocess.run(["mount", "-o", "remount,bind,nodev", file], check=True)
    mine = f"CUDA_VISIBLE_DEVICES={gpus[-1]}".encode()
    for pid in harness.workers():
        if mine in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            os.kill(pid, signal.SIGKILL)
    status = harness.agents[-1].wait(timeout=400)
    print(f"the agent ended with {status}")
    subprocess.run(["umount", file], check=True)


def find_problems(harness: SweepHarness, expected: Losses) -> list[str]:
    """What differs from a grid without faults, except small differences of the losses."""
    problems = []
    runs = harness.runs()
    if sorted(map(harness.cell, runs)) != sorted(harness.expected_cells().elements()):
        problems.append(f"cells: {sorted(map(harness.cell, runs))}")
    for run in runs:
        losses = [row["loss"] for row in run.rows]
        if run.state != "finished" or "failure/cause" in run.summary:
            problems.append(f"{harness.cell(run)} is {run.state} {run.summary.get('failure/message', '')}")
        elif [row["_step"] for row in run.rows] != list(range(1, STEPS + 1)):
            problems.append(f"{harness.cell(run)} has {len(losses)} rows")
        else:
            pairs = zip(losses, expected[harness.cell(run)], strict=True)
            most = max(abs(ours - theirs) for ours, theirs in pairs)
            print(f"  {harness.cell(run)}: {len(losses)} rows, losses differ by {most:.1e} at most")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["assert", "gone"])
    options = parser.parse_args()
    faults = {"assert": assert_in_kernel, "gone": remove_gpu}
    if options.only:
        faults = {options.only: faults[options.only]}
    if "gone" in faults and "KTO_SWEEP_OWN_MOUNTS" not in os.environ:
        os.environ["KTO_SWEEP_OWN_MOUNTS"] = "1"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])
    atexit.register(python_forkserver.start())
    gpus = gpu_indices()
    folder = Path(tempfile.mkdtemp(prefix="gpu-accidents-"))
    harnesses = [gpu_harness(folder / "baseline", "0")]
    harm: list[str] = []
    try:
        harnesses[0].start_agent()
        harnesses[0].finish()
        expected = harnesses[0].losses()
        for name, fault in faults.items():
            used = gpus if name == "gone" else gpus[-1:]
            harnesses.append(gpu_harness(folder / name, ",".join(used)))
            inject(harnesses[-1], fault, used)
            harm += find_problems(harnesses[-1], expected)
    finally:
        for harness in harnesses:
            harness.close()
    if not harm:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(harm) or "nothing was lost or done twice")
    return int(bool(harm))


def inject(
    harness: SweepHarness, fault: Callable[[SweepHarness, Sequence[str]], None], gpus: Sequence[str]
) -> None:
    """Inject a fault in the middle of a grid."""
    began = time.monotonic()
    harness.start_agent()
    harness.wait_for_progress(STEPS)
    fault(harness, gpus)
    harness.finish()
    print(f"{fault.__name__}: {time.monotonic() - began:.0f} s", flush=True)
    print(harness.output(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
