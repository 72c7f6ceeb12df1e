"""Are co-trained trials on this GPU what they would be alone? One line per check, exit 1 if one fails.

    PYTHONPATH=. python benchmarks/cotrain_check.py [--quantization none 4bit] [--device cpu]

Four trials of a random Llama on random rows, through the co-trainer: with checkpoints, evaluations and rows
that come one step late. In bfloat16 every change of kernel or batch rounds differently; as much as the same
trial differs when each of its batches is split into single examples, times SLACK, is called the same.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from kto_sweep.alerts import RunAlert
from kto_sweep.data.dataset import TrainingData
from kto_sweep.data.rows import TokenRow
from kto_sweep.data.table import RowTable
from kto_sweep.provenance import Provenance
from kto_sweep.train.base_model import LoadedBase
from kto_sweep.train.packed.microbatch import MicrobatchLimit
from kto_sweep.train.trial.request import TrialRequest
from kto_sweep.train.worker.admission_queue import AdmissionQueue
from kto_sweep.train.worker.cotrainer import CoTrainer
from kto_sweep.trial import Trial

SLACK = 4.0
STEPS = 12
COMPARED = ("loss", "rewards/chosen", "rewards/rejected", "kl_raw", "eval/common_loss")

Rows = dict[int, Mapping[str, float]]


class Recorder:
    """A Report that remembers."""

    def __init__(self) -> None:
        self.rows: Rows = {}
        self.notes: list[str] = []

    def preparing(self, what: str, done: int, total: int) -> None:
        pass

    def loaded(self, provenance: Provenance) -> None:
        pass

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        pass

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.rows[step] = values

    def note(self, text: str) -> None:
        self.notes.append(text)

    def alert(self, alert: RunAlert) -> None:
        pass


def make_base(quantization: str, device: torch.device) -> LoadedBase:
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to(device)
    if quantization == "4bit":
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            how = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.bfloat16, quantization_config=how, device_map={"": device}
            )
    return LoadedBase("random", model.eval(), None, torch.bfloat16, quantization)  # type: ignore[arg-type]


def make_data(longest: int) -> TrainingData:
    rng = np.random.default_rng(0)

    def tokens() -> list[int]:
        return rng.integers(3, 8000, rng.integers(8, longest)).tolist()

    rows = RowTable.from_rows(TokenRow(tokens(), tokens(), bool(at % 2), at) for at in range(80))
    return TrainingData.paired("random", rows[:64], rows[64:], 2 * longest)


def trials() -> dict[str, Trial]:
    settings: dict[str, dict[str, Any]] = {
        "a": {"batch_size": 8, "lora_r": 16, "seed": 1},
        "b": {"batch_size": 4, "lora_r": 8, "seed": 2, "beta": 0.3, "loss_type": "apo_zero_unpaired"},
        "c": {"batch_size": 16, "lora_r": 64, "seed": 3, "lora_targets": ("q_proj", "v_proj")},
        "d": {"batch_size": 8, "lora_r": 16, "seed": 4, "lora_dropout": 0.1, "optimizer": "adamw_8bit"},
    }
    common: dict[str, Any] = {
        "model": "random",
        "dataset": "none",
        "learning_rate": 3e-4,
        "max_steps": STEPS,
        "eval_steps": 4,
    }
    return {name: Trial(**common | own, max_length=2048) for name, own in settings.items()}


class Bench:
    """Co-trainers on one base and its rows."""

    def __init__(self, base: LoadedBase, data: TrainingData, folder: Path) -> None:
        self.base, self.data, self.folder = base, data, folder
        self.runs = 0

    def run(
        self, names: Sequence[str], *, kill_at: int = 0, limit: MicrobatchLimit | None = None, late: int = 0
    ) -> tuple[dict[str, Rows], list[str]]:
        """Rows by trial, and all notes; with `kill_at`, of trials that went on in a second co-trainer."""
        self.runs += 1
        folder = self.folder / str(self.runs)
        reports = {name: Recorder() for name in names}
        chosen = trials()
        for steps in (kill_at, 10**6) if kill_at else (10**6,):
            queue = AdmissionQueue()
            trainer = CoTrainer(
                self.base,
                self.data,
                chosen[names[0]],
                queue,
                cache=self.folder / "cache",
                limit=limit or MicrobatchLimit(),
            )
            waiting = list(names)
            for step in range(steps):
                while waiting and step >= late * names.index(waiting[0]):
                    name = waiting.pop(0)
                    queue.put(TrialRequest(name, chosen[name], folder / name, reports[name]))
                for outcome in trainer.step():
                    if isinstance(outcome.result, Exception):
                        raise outcome.result
                if not trainer.busy and not waiting:
                    break
            trainer.close()
        return {name: report.rows for name, report in reports.items()}, [
            note for report in reports.values() for note in report.notes
        ]


def distance(one: Rows, other: Rows) -> float:
    """Largest difference of any compared metric over all steps; infinite when steps are missing."""
    if one.keys() != other.keys() or len(one) != STEPS:
        return math.inf
    return max(
        abs(row[name] - other[step][name]) for step, row in one.items() for name in COMPARED if name in row
    )


results: list[bool] = []


def check(name: str, found: float, allowed: float) -> None:
    fine = found <= allowed
    results.append(fine)
    print(f"{'ok  ' if fine else 'FAIL'} {name:60} {found:9.2e}  allowed {allowed:9.2e}", flush=True)


@contextmanager
def at_most(gib: float) -> Iterator[None]:
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(gib / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def check_base(quantization: str, device: torch.device) -> None:
    data = make_data(24 if device.type == "cpu" else 400)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(make_base(quantization, device), data, Path(folder))
        names = list(trials())
        alone = {name: bench.run([name])[0][name] for name in names}
        split = {name: bench.run([name], limit=MicrobatchLimit(examples=1))[0][name] for name in names}
        noise = {name: max(distance(split[name], alone[name]), 1e-5) for name in names}
        cases = {
            "the same trial once more": {name: bench.run([name])[0][name] for name in names},
            "all at once": bench.run(names)[0],
            "joining two steps after each other": bench.run(names, late=2)[0],
            "going on after a crash at step 6": bench.run(names, kill_at=7)[0],
        }
        for case, found in cases.items():
            for name in names:
                check(
                    f"{quantization}: {case}, trial {name}",
                    distance(found[name], alone[name]),
                    SLACK * noise[name],
                )
        if device.type == "cuda":
            check_memory(bench, quantization, alone, noise)


def check_memory(
    bench: Bench, quantization: str, alone: Mapping[str, Rows], noise: Mapping[str, float]
) -> None:
    """Less and less memory: the same numbers, as long as it goes at all."""
    names = list(alone)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    bench.run(names)
    print(f"     all at once took {time.perf_counter() - began:.1f} s")
    needed = torch.cuda.max_memory_reserved() / 2**30
    for share in (0.6, 0.3, 0.15, 0.08):
        gib = before + share * (needed - before)
        with at_most(gib):
            began = time.perf_counter()
            try:
                rows, notes = bench.run(names)
            except Exception as error:
                print(f"     {quantization}: with {gib:.2f} of {needed:.2f} GiB: {error}")
                continue
        seconds = time.perf_counter() - began
        for note in dict.fromkeys(note.partition(": ")[2] for note in notes if "memory is short" in note):
            print(f"     {note}")
        for name in names:
            what = f"{quantization}: {gib:.2f} of {needed:.2f} GiB, {seconds:.1f} s, trial {name}"
            check(what, distance(rows[name], alone[name]), SLACK * noise[name])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quantization", nargs="+", default=["none", "4bit"])
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    for quantization in args.quantization:
        check_base(quantization, torch.device(args.device))
    print(f"{sum(results)} of {len(results)} checks passed")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
