"""Seconds per optimizer step and trial: TRL's KTOTrainer against the packed engine, in one run.

    PYTHONPATH=. python benchmarks/step.py --data rows.jsonl --tokenizer FOLDER --sizes 0.5b:1/4/8,7b:1/3
    PYTHONPATH=. python benchmarks/step.py --data rows.jsonl --model model.gguf --trials 1/4 \\
        --steps 6 --warmup 1 --max-length 256                                             # on a CPU

A size is an architecture of Qwen2.5 with random weights, followed by the numbers of co-trained trials to try.
All trainers see the same batches, with LoRA r 16 on all linear layers, in bf16 on a GPU and fp32 on a CPU.
TRL's steps are medians after `--warmup` steps, because it compiles kernels for each new shape; ours after 5.
Reference values are taken as cached (TRL tuned: precomputed, its set-up not counted; ours: zeros, at the same
cost). cpu_s is the time that this process computed, summed over its threads. On a CPU, where other work
comes and goes, a step of TRL and one of ours take turns, after `--warmup` steps of both, and there is a ratio
of cpu_s as well: with one thread (OMP_NUM_THREADS=1) it hardly depends on that other work.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from common import (
    RANK,
    SEED,
    TRL_TUNED,
    Rows,
    describe_machine,
    for_trl,
    least_work,
    load_rows,
    matmul_ceiling,
    matmul_weights,
    memory_fraction,
    peak_gib,
    print_table,
    random_model,
    scratch_folder,
    tokenizer_of,
    wait_for_device,
    write_json,
)
from datasets import Dataset
from trl_trial import StepTimes, make_trainer

from kto_sweep.home import Home
from kto_sweep.models.architecture import Recompute
from kto_sweep.models.presets import Quantization
from kto_sweep.train.base_model import LoadedBase, load_base
from kto_sweep.train.device import pick_device
from kto_sweep.train.packed.compatibility import packed_decoder
from kto_sweep.train.packed.engine import Engine
from kto_sweep.train.packed.slot import ReferenceRows
from kto_sweep.trial import Trial

OUR_WARMUP = 5
PROFILED = 2
"""Steps that --profile looks at, beyond those that are timed."""
TOP_KERNELS = 28
BASELINES: dict[str, dict[str, Any]] = {"TRL defaults": {}, "TRL tuned": TRL_TUNED}

Result = dict[str, Any]


class Subject:
    """One model and the rows that all trainers train it on."""

    def __init__(self, name: str, model: str, options: argparse.Namespace) -> None:
        self.name = name
        self.model = model
        self.options = options
        self.rows: Rows = load_rows(options.data, tokenizer_of(model), options.max_length)

    def load(self) -> LoadedBase:
        """The base model, anew for each trainer."""
        return load_base(
            self.model,
            quantization=self.options.quantization,
            device=pick_device(),
            home=Home.from_environment(),
        )

    def time_trl(self, tuning: dict[str, Any], between: Callable[[], object] = lambda: None) -> Result:
        """TRL's KTOTrainer as it comes, or with `tuning`; `between` is called after each of its steps."""
        options = self.options
        steps = options.steps + options.warmup
        order = self.rows.order(options.batch_size, steps)
        rows = Dataset.from_list([for_trl(self.rows.examples[at]) for at in order])
        base, times, began = self.load(), StepTimes(between), time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(
                base, rows, times, folder,
                per_device_train_batch_size=options.batch_size, max_steps=steps,
                max_length=options.max_length, train_sampling_strategy="sequential", **tuning,
            )  # fmt: skip
            ready = time.perf_counter()
            trainer.train()
        return {
            "step_s": statistics.median(times.seconds[options.warmup :]),
            "cpu_s": statistics.median(times.cpu_seconds[options.warmup :]),
            "setup_s": round(ready - began, 1),
        }


class Packed:
    """Our engine with `slots` trials of different learning rates."""

    def __init__(self, subject: Subject, slots: int) -> None:
        options = subject.options
        self._slots = slots
        decoder = packed_decoder(subject.load().model)
        decoder.set_recompute(Recompute[options.recompute.upper()])
        rows = subject.rows.train
        data = ReferenceRows(rows, np.zeros((len(rows), 2)))
        self.engine = Engine(decoder, data, ReferenceRows(rows[:0], np.zeros((0, 2))), slots=slots)
        for slot in range(slots):
            trial = Trial(
                model="random", dataset="rows", batch_size=options.batch_size,
                max_length=options.max_length, lora_r=RANK, learning_rate=1e-6 * (slot + 1),
                seed=SEED + slot, max_steps=options.steps + max(OUR_WARMUP, options.warmup) + PROFILED,
            )  # fmt: skip
            self.engine.join(slot, trial)
        self._seconds: list[float] = []
        self._host: list[float] = []
        self._cpu: list[float] = []
        self._tokens: list[int] = []
        self._loss = 0.0

    def step(self) -> None:
        """One timed step of every trial."""
        wait_for_device()
        begin, cpu_begin = time.perf_counter(), time.process_time()
        result = self.engine.step()
        self._host.append(time.perf_counter() - begin)
        measured = result.read()
        self._seconds.append(time.perf_counter() - begin)
        self._cpu.append(time.process_time() - cpu_begin)
        self._tokens.append(sum(slot.info.tokens for slot in measured.values()))
        self._loss = measured[0].values["loss"]

    def result(self, warmup: int) -> Result:
        """What the steps after the first `warmup` took."""
        return {
            "step_s": statistics.median(self._seconds[warmup:]) / self._slots,
            "cpu_s": statistics.median(self._cpu[warmup:]) / self._slots,
            "host_s": statistics.median(self._host[warmup:]) / self._slots,
            "tokens_per_s": round(sum(self._tokens[warmup:]) / sum(self._seconds[warmup:])),
            "last_loss": round(self._loss, 4),
        }


def time_packed(subject: Subject, slots: int) -> Result:
    """Our engine on its own."""
    packed = Packed(subject, slots)
    for _ in range(subject.options.steps + OUR_WARMUP):
        packed.step()
    if subject.options.profile:
        print_kernels(packed.engine, PROFILED)
    return packed.result(OUR_WARMUP)


def print_kernels(engine: Engine, steps: int) -> None:
    """Which kernels a step spends the device's time in, and how many it launches."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as seen:
        for _ in range(steps):
            engine.step().read()
    milliseconds: dict[str, float] = {}
    launches: dict[str, int] = {}
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            name = event.name.replace("at::native::", "").replace("(anonymous namespace)::", "")[:110]
            milliseconds[name] = milliseconds.get(name, 0.0) + event.device_time / 1000 / steps
            launches[name] = launches.get(name, 0) + 1
    print(
        f"{sum(launches.values()) // steps} launches, {sum(milliseconds.values()):.1f} ms in kernels a step"
    )
    for name in sorted(milliseconds, key=milliseconds.__getitem__, reverse=True)[:TOP_KERNELS]:
        print(f"{milliseconds[name]:8.2f} ms {launches[name] // steps:6d}  {name}")


def attempt(subject: Subject, name: str, work: Callable[[], Result]) -> Result:
    """One row of the table; a trainer that runs out of memory is a result too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    row: Result = {"model": subject.name, "run": name}
    try:
        row |= work()
    except torch.OutOfMemoryError:
        row["step_s"] = float("nan")
    row["peak_gib"] = peak_gib()
    print(json.dumps(row), flush=True)
    return row


def one_by_one(subject: Subject, counts: Sequence[int]) -> list[Result]:
    """Each trainer alone on the device."""
    baselines = {}
    if not subject.options.without_trl:
        for name, tuning in chosen_baselines(subject.options).items():
            baselines[name] = attempt(subject, name, partial(subject.time_trl, tuning))
    table = list(baselines.values())
    for slots in counts:
        row = attempt(subject, packed_name(slots), partial(time_packed, subject, slots))
        for name, baseline in baselines.items():
            row[f"x {name}"] = round(baseline["step_s"] / row["step_s"], 2)
        table.append(row)
    return table


def in_turns(subject: Subject, counts: Sequence[int]) -> list[Result]:
    """Each of TRL's trainers with each number of our trials, step by step."""
    table = []
    for slots in counts:
        for name, tuning in chosen_baselines(subject.options).items():
            packed = Packed(subject, slots)
            baseline = attempt(subject, name, partial(subject.time_trl, tuning, packed.step))
            row = attempt(subject, packed_name(slots), partial(packed.result, subject.options.warmup))
            row[f"x {name}"] = round(baseline["step_s"] / row["step_s"], 2)
            row[f"x {name}, cpu_s"] = round(baseline["cpu_s"] / row["cpu_s"], 2)
            table += [baseline, row]
    return table


def chosen_baselines(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """TRL's trainers to measure, by name."""
    return {name: tuning for name, tuning in BASELINES.items() if not (tuning and options.without_tuned)}


def packed_name(slots: int) -> str:
    """What our engine is called in the table."""
    return f"packed, {slots} trial{'s' if slots > 1 else ''}"


def subjects(options: argparse.Namespace, scratch: Path) -> Iterator[tuple[Subject, list[int]]]:
    """Each model that was asked for, with the numbers of trials to try on it."""
    if options.model:
        yield Subject(Path(options.model).name, options.model, options), _counts(options.trials)
        return
    for text in options.sizes.split(","):
        size, _, counts = text.partition(":")
        model = random_model(size, options.tokenizer, scratch)
        yield Subject(size, model, options), _counts(counts)


def _counts(text: str) -> list[int]:
    return [int(count) for count in text.split("/")]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--sizes", default="0.5b:1/4/8,1.5b:1/4/8,7b:1/2/3")
    parser.add_argument("--tokenizer", help="for --sizes: a folder or .gguf file with a chat template")
    parser.add_argument("--model", help="in place of --sizes: a folder or .gguf file")
    parser.add_argument("--trials", default="1", help="of --model: numbers to co-train, as in 1/4")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=35, help="of TRL's trainer")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--quantization", choices=get_args(Quantization), default="none")
    parser.add_argument("--memory-gib", type=float, help="use only so much of the GPU's memory")
    parser.add_argument("--without-trl", action="store_true")
    parser.add_argument("--without-tuned", action="store_true", help="TRL with its defaults only")
    parser.add_argument("--recompute", choices=[level.name.lower() for level in Recompute], default="nothing")
    parser.add_argument("--profile", action="store_true", help="of ours: the kernels that take longest")
    parser.add_argument("--scratch", type=Path, help="kept, with its models, for the next call")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not options.model and not options.tokenizer:
        parser.error("give --model, or --sizes and --tokenizer")
    if options.memory_gib and not torch.cuda.is_available():
        parser.error("--memory-gib: there is no GPU")
    return options


def main() -> None:
    options = parse()
    cuda = torch.cuda.is_available()
    ceiling = matmul_ceiling() if cuda else None
    print(describe_machine(ceiling), flush=True)
    if options.memory_gib:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(memory_fraction(options.memory_gib))
    measure = one_by_one if cuda or options.without_trl else in_turns
    table: list[Result] = []
    with scratch_folder(options.scratch) as scratch:
        for subject, counts in subjects(options, scratch):
            rows = measure(subject, counts)
            for row in rows:
                if ceiling and "tokens_per_s" in row:
                    work = least_work(matmul_weights(subject.model), row["tokens_per_s"])
                    row["of_ceiling"] = round(work / ceiling, 3)
            table += rows
    print_table(table)
    if options.out:
        write_json(options.out, table)


if __name__ == "__main__":
    main()
