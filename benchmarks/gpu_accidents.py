"""Accidents on real GPUs: does a grid end as if nothing had happened?

    PYTHONPATH=. python benchmarks/gpu_accidents.py             # both, as root: 5 minutes
    PYTHONPATH=. python benchmarks/gpu_accidents.py --only assert

assert   a kernel in the worker on the last GPU indexes out of bounds: nothing on the device works in that
         process any more, and the trials go on in another one
gone     the device file of the last GPU cannot be opened any more, as after a GPU has fallen off the bus, and
         its worker is killed: the trials move to GPU 0. On a box with one GPU its agent ends, and another one
         has the trials go on when the GPU is back

Ends with 1, and keeps its files, if anything was lost or done twice. How far losses are from those of an
undisturbed grid, trained on GPU 0 before, is printed and not judged: in bf16 a trial's neighbours change its
last bits, and what becomes of those depends on the learning rate. On a CPU chaos.py judges it. No setting of
a GPU is changed: the device file is closed in a mount namespace of this program's own.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))

from arena import Arena, Losses

STEPS = 300
AXES = {"learning_rate": [0.0001, 0.0003], "seed": [1, 2]}
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
"""Imported by every Python of a box, as sitecustomize."""


def box(folder: Path, gpus: str) -> Arena:
    """A box with these GPUs whose workers trip over the file `trigger`."""
    environ = {
        "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),
        "TRIGGER": str(folder / "trigger"),
    }
    arena = Arena(folder, AXES, environ, ("--trials-per-gpu", "2", "--gpus", gpus))
    arena.patch(ASSERTING)
    arena.create(max_steps=STEPS, eval_steps=50)
    return arena


def names_of_gpus() -> list[str]:
    """As nvidia-smi has them."""
    asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()


def trip(arena: Arena, _gpus: Sequence[str]) -> None:
    """Have a worker's next kernel assert."""
    trigger = arena.folder / "trigger"
    trigger.touch()
    arena.wait(lambda: not trigger.exists(), what="the assertion")


def take_away(arena: Arena, gpus: Sequence[str]) -> None:
    """Let nobody open the last GPU any more, and kill its worker."""
    file = f"/dev/nvidia{gpus[-1]}"
    subprocess.run(["mount", "--bind", file, file], check=True)
    subprocess.run(["mount", "-o", "remount,bind,nodev", file], check=True)
    mine = f"CUDA_VISIBLE_DEVICES={gpus[-1]}".encode()
    for pid in arena.workers():
        if mine in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            os.kill(pid, signal.SIGKILL)
    status = arena.agents[-1].wait(timeout=400)
    print(f"the agent ended with {status}")
    subprocess.run(["umount", file], check=True)


def problems(arena: Arena, expected: Losses) -> list[str]:
    """What is not as in a grid without accidents."""
    found = []
    runs = arena.runs()
    if sorted(map(arena.cell, runs)) != sorted(arena.expected_cells().elements()):
        found.append(f"cells: {sorted(map(arena.cell, runs))}")
    for run in runs:
        losses = [row["loss"] for row in run.rows]
        if run.state != "finished" or "failure/cause" in run.summary:
            found.append(f"{arena.cell(run)} is {run.state} {run.summary.get('failure/message', '')}")
        elif [row["_step"] for row in run.rows] != list(range(1, STEPS + 1)):
            found.append(f"{arena.cell(run)} has {len(losses)} rows")
        else:
            pairs = zip(losses, expected[arena.cell(run)], strict=True)
            most = max(abs(ours - theirs) for ours, theirs in pairs)
            print(f"  {arena.cell(run)}: {len(losses)} rows, losses differ by {most:.1e} at most")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["assert", "gone"])
    options = parser.parse_args()
    accidents = {"assert": trip, "gone": take_away}
    if options.only:
        accidents = {options.only: accidents[options.only]}
    if "gone" in accidents and "KTO_SWEEP_OWN_MOUNTS" not in os.environ:
        os.environ["KTO_SWEEP_OWN_MOUNTS"] = "1"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])
    gpus = names_of_gpus()
    folder = Path(tempfile.mkdtemp(prefix="gpu-accidents-"))
    arenas = [box(folder / "undisturbed", "0")]
    harm: list[str] = []
    try:
        arenas[0].start_agent()
        arenas[0].finish()
        expected = arenas[0].losses()
        for name, accident in accidents.items():
            used = gpus if name == "gone" else gpus[-1:]
            arenas.append(box(folder / name, ",".join(used)))
            happen(arenas[-1], accident, used)
            harm += problems(arenas[-1], expected)
    finally:
        for arena in arenas:
            arena.close()
    if not harm:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(harm) or "nothing was lost or done twice")
    return int(bool(harm))


def happen(arena: Arena, accident: Callable[[Arena, Sequence[str]], None], gpus: Sequence[str]) -> None:
    """Have an accident in the middle of a grid."""
    began = time.monotonic()
    arena.start_agent()
    arena.wait_for_progress(STEPS)
    accident(arena, gpus)
    arena.finish()
    print(f"{accident.__name__}: {time.monotonic() - began:.0f} s", flush=True)
    print(arena.said(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
