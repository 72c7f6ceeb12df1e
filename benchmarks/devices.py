"""One trial on several devices against one: seconds of a step, and whether the numbers are the same.

    PYTHONPATH=. python benchmarks/devices.py --data rows.jsonl --size 1.5b --tokenizer FOLDER --devices 1,2

LoRA (each device has the whole model, DDP) and full fine-tuning (each has a part of the weights, FSDP), with
TRL's trainer as `kto-sweep train --gpus N` starts it; --packed adds the packed trainer on one device. Seconds
are the median of the steps after --warmup; losses are compared with those on the first number of devices.
Without a GPU the devices are processes on the CPU, which shows that it works and not how fast.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from common import ARCHITECTURES, describe_machine, matmul_ceiling, print_table, random_model, scratch_folder

from kto_sweep.alerts import RunAlert
from kto_sweep.home import Home
from kto_sweep.provenance import Provenance
from kto_sweep.train.context import WorkerContext
from kto_sweep.train.device import pick_device
from kto_sweep.train.trial.request import TrialRequest
from kto_sweep.train.trl.launcher import train_in_ranks
from kto_sweep.train.trl.trainer import train_with_trl
from kto_sweep.train.worker.loop import train_trial
from kto_sweep.trial import Trial


class Recorder:
    """A Report that keeps the losses, and when they came."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.at: list[float] = []
        self.peak_gib: float | None = None

    def preparing(self, what: str, done: int, total: int) -> None:
        pass

    def loaded(self, provenance: Provenance) -> None:
        pass

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        pass

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.losses.append(values["loss"])
        self.at.append(time.monotonic())
        self.peak_gib = values.get("gpu/memory_peak_gb")

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    def alert(self, alert: RunAlert) -> None:
        print(alert, file=sys.stderr)


def train(options: argparse.Namespace) -> dict[str, Any]:
    """What one trial measured, trained here."""
    told = Recorder()
    trial = Trial(
        model=options.model, dataset=str(Path(options.data).resolve()), batch_size=options.batch_size,
        max_length=options.max_length, max_steps=options.steps, learning_rate=1e-5, eval_fraction=0.02,
        eval_steps=options.steps, full_finetune=options.kind == "full",
    )  # fmt: skip
    home, devices = Home(options.scratch), int(options.devices)
    context = WorkerContext(home, pick_device())
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        request = TrialRequest("run", trial, Path(folder), told, lambda: False, None)
        began = time.monotonic()
        if options.kind == "packed":
            train_trial(context, trial, Path(folder), told, lambda: False)
        elif devices > 1:
            train_in_ranks(request, home, devices)
        else:
            train_with_trl(context, request)
    gaps = [after - before for before, after in itertools.pairwise(told.at)]
    del gaps[-1]  # which has the evaluation
    return {
        "start_s": told.at[0] - began,
        "step_s": statistics.median(gaps[min(options.warmup, len(gaps) // 2) :]),
        "peak_gib": told.peak_gib,
        "losses": told.losses,
    }


def child(options: argparse.Namespace, kind: str, devices: int) -> dict[str, Any]:
    """What one trial measured, in a process of its own, which leaves no memory behind."""
    shared = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in _SHARED]
    command = [sys.executable, __file__, *shared, f"--kind={kind}", f"--devices={devices}"]
    # As the supervisor does it: a process sees the devices that are its own, and no others.
    visible = {
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(devices))),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | visible)
    if done.returncode:
        return {"error": f"exit status {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


_SHARED = ("data", "model", "scratch", "batch_size", "max_length", "steps", "warmup")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="JSON lines as `kto-sweep` reads them")
    parser.add_argument("--size", choices=[*ARCHITECTURES], help="random weights of this size")
    parser.add_argument("--tokenizer", help="for --size: a folder or .gguf file with a chat template")
    parser.add_argument("--model", help="in place of --size: a folder or .gguf file")
    parser.add_argument("--devices", default="1,2")
    parser.add_argument("--kinds", default="lora,full")
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=35)
    parser.add_argument("--scratch", type=Path, help="kept, with its models, for the next call")
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(train(options)))
        return
    if not options.model and not (options.size and options.tokenizer):
        parser.error("give --model, or --size and --tokenizer")
    with scratch_folder(options.scratch) as options.scratch:
        options.model = options.model or random_model(options.size, options.tokenizer, options.scratch)
        print(describe_machine(matmul_ceiling() if torch.cuda.is_available() else None), flush=True)
        jobs = [("packed", 1)] if options.packed else []
        jobs += [(kind, int(n)) for kind in options.kinds.split(",") for n in options.devices.split(",")]
        rows: list[dict[str, Any]] = []
        first: dict[str, dict[str, Any]] = {}
        for kind, devices in jobs:
            found = child(options, kind, devices)
            row: dict[str, Any] = {"trainer": kind, "devices": devices, "error": found.get("error")}
            if "step_s" in found:
                base = first.setdefault(kind, found)
                row |= {name: found[name] for name in ("start_s", "step_s", "peak_gib")}
                row["x first"] = base["step_s"] / found["step_s"]
                pairs = zip(found["losses"], base["losses"], strict=True)
                row["largest difference of a loss"] = max(abs(ours - theirs) for ours, theirs in pairs)
            rows.append(row)
            print(json.dumps(row), flush=True)
        print_table(rows)


if __name__ == "__main__":
    main()
