"""Seconds per optimizer step and trial: TRL's KTOTrainer against the packed engine, in one run on one GPU.

    PYTHONPATH=. python benchmarks/step.py --data rows.jsonl --tokenizer FOLDER --sizes 0.5b:1/4/8,7b:1/3

A size is an architecture of Qwen2.5 with random weights, followed by the numbers of co-trained trials to try.
All trainers see the same rows at batch 8, max_length 1024, LoRA r 16 on all linear layers, bf16. TRL's steps
are medians after `--warmup` steps, because it compiles kernels for each new shape; ours after 5. Reference
values are taken as cached (TRL tuned: precomputed, its set-up not counted; ours: zeros, at the same cost).
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, TrainerCallback

from kto_sweep.data.formats import LoadedData, load_examples
from kto_sweep.data.split import partners
from kto_sweep.data.tokenise import tokenise
from kto_sweep.train.engine import Engine
from kto_sweep.train.pack import PairedRow, pair_rows
from kto_sweep.train.slot import ReferencedRows
from kto_sweep.train.support import packed_decoder
from kto_sweep.trial import Trial

BATCH, MAX_LENGTH, RANK = 8, 1024, 16
OUR_WARMUP = 5
PROFILED = 2
"""Steps that --profile looks at, beyond those that are timed."""
TOP_KERNELS = 28
MISMATCHED_AND_BACKWARD = 2.53
"""Forwards that a step cannot do without: policy, gradient of its inputs, mismatched completions."""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}


def random_model(size: str, device: torch.device) -> PreTrainedModel:
    """The architecture in bf16 with random weights, vocabulary of Qwen2.5."""
    torch.manual_seed(0)
    config = Qwen2Config(
        **ARCHITECTURES[size], vocab_size=151936, max_position_embeddings=32768, dtype=torch.bfloat16
    )
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = Qwen2ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model


def matmul_ceiling(device: torch.device) -> float:
    """TFLOP/s of a large bf16 matrix product on random data."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(10):
        a @ b
    torch.cuda.synchronize()
    return 10 * 2 * 8192**3 / (time.perf_counter() - begin) / 1e12


class StepTimes(TrainerCallback):
    """Seconds of each optimizer step of a transformers trainer."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begin = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        torch.cuda.synchronize()
        self._begin = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._begin)


def time_trl(
    size: str, loaded: LoadedData, tokenizer: Any, steps: int, warmup: int, **tuning: Any
) -> dict[str, Any]:
    """TRL's KTOTrainer as it comes, or with `tuning`."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import KTOConfig, KTOTrainer

    rows = [
        {"prompt": list(row.prompt), "completion": list(row.completion), "label": row.label}
        for row in loaded.examples[: BATCH * (steps + warmup)]
    ]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        arguments = KTOConfig(
            output_dir=folder, per_device_train_batch_size=BATCH, max_steps=steps + warmup,
            max_length=MAX_LENGTH, learning_rate=5e-6, report_to="none", logging_strategy="no",
            save_strategy="no", bf16=True, disable_tqdm=True, **tuning,
        )  # fmt: skip
        times = StepTimes()
        trainer = KTOTrainer(
            model=random_model(size, torch.device("cuda")),
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[times],
        )
        ready = time.perf_counter()
        trainer.train()
    return {"step_s": statistics.median(times.seconds[warmup:]), "setup_s": round(ready - began, 1)}


def time_packed(size: str, rows: list[PairedRow], slots: int, steps: int, **settings: Any) -> dict[str, Any]:
    """Our engine with `slots` trials of different learning rates."""
    decoder = packed_decoder(random_model(size, torch.device("cuda")))
    decoder.set_recompute(settings.get("recompute", False))
    data = ReferencedRows(rows, np.zeros((len(rows), 2)))
    engine = Engine(decoder, data, ReferencedRows([], np.zeros((0, 2))), slots=slots)
    for slot in range(slots):
        trial = Trial(
            model="random", dataset="rows", batch_size=BATCH, max_length=MAX_LENGTH, lora_r=RANK,
            learning_rate=1e-6 * (slot + 1), seed=slot, max_steps=steps + OUR_WARMUP + PROFILED,
        )  # fmt: skip
        engine.join(slot, trial)
    seconds, host, tokens, loss = [], [], [], 0.0
    for _ in range(steps + OUR_WARMUP):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        result = engine.step()
        host.append(time.perf_counter() - begin)
        measured = result.read()
        seconds.append(time.perf_counter() - begin)
        tokens.append(sum(slot.known.tokens for slot in measured.values()))
        loss = measured[0].values["loss"]
    measured_tokens, measured_seconds = sum(tokens[OUR_WARMUP:]), sum(seconds[OUR_WARMUP:])
    if settings.get("profile"):
        print_kernels(engine, PROFILED)
    return {
        "step_s": statistics.median(seconds[OUR_WARMUP:]) / slots,
        "host_s": statistics.median(host[OUR_WARMUP:]) / slots,
        "tokens_per_s": round(measured_tokens / measured_seconds),
        "last_loss": round(loss, 4),
    }


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


def parameters_in_matmuls(size: str) -> float:
    """Weights that each token is multiplied with in one forward, the output layer aside."""
    a = ARCHITECTURES[size]
    head = a["hidden_size"] // a["num_attention_heads"]
    attention = a["hidden_size"] * head * (2 * a["num_attention_heads"] + 2 * a["num_key_value_heads"])
    return float(a["num_hidden_layers"] * (attention + 3 * a["hidden_size"] * a["intermediate_size"]))


def attempt(name: str, size: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One row of the table; a trainer that runs out of memory is a result too."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    row: dict[str, Any] = {"size": size, "run": name}
    try:
        row |= work()
    except torch.OutOfMemoryError:
        row["step_s"] = float("nan")
    row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    print(json.dumps(row), flush=True)
    return row


def print_table(table: Sequence[dict[str, Any]]) -> None:
    """The results in Markdown."""
    columns = list(dict.fromkeys(name for row in table for name in row))
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in table:
        cells = [row.get(name, "") for name in columns]
        shown = (f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in cells)
        print("| " + " | ".join(shown) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True, help="folder of a tokenizer with a chat template")
    parser.add_argument("--sizes", default="0.5b:1/4/8,1.5b:1/4/8,7b:1/2/3")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=35, help="of TRL's trainer")
    parser.add_argument("--without-trl", action="store_true")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--profile", action="store_true", help="of ours: the kernels that take longest")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    loaded = load_examples(options.data)
    tokens = tokenise(loaded.examples, tokenizer, MAX_LENGTH)
    rows = pair_rows(tokens.rows, partners(tokens.rows, 0), MAX_LENGTH)
    ceiling = matmul_ceiling(torch.device("cuda"))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; bf16 matmul {ceiling:.0f} TFLOP/s")
    table: list[dict[str, Any]] = []
    for text in options.sizes.split(","):
        size, _, counts = text.partition(":")
        baselines = {}
        if not options.without_trl:
            for name, tuning in (
                ("TRL defaults", {}),
                ("TRL tuned", {"precompute_ref_log_probs": True, "gradient_checkpointing": False}),
            ):
                baselines[name] = attempt(
                    name,
                    size,
                    lambda size=size, tuning=tuning: time_trl(
                        size, loaded, tokenizer, options.steps, options.warmup, **tuning
                    ),
                )
        table += baselines.values()
        for slots in map(int, counts.split("/")):
            row = attempt(
                f"packed, {slots} trial{'s' if slots > 1 else ''}",
                size,
                lambda size=size, slots=slots: time_packed(
                    size,
                    rows,
                    slots,
                    options.steps,
                    recompute=options.recompute,
                    profile=options.profile,
                ),
            )
            for name, baseline in baselines.items():
                row[f"x {name}"] = round(baseline["step_s"] / row["step_s"], 2)
            if "tokens_per_s" in row:
                work = 2 * MISMATCHED_AND_BACKWARD * parameters_in_matmuls(size) * row["tokens_per_s"] / 1e12
                row["of_ceiling"] = round(work / ceiling, 3)
            table.append(row)
    print_table(table)
    if options.out:
        options.out.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
