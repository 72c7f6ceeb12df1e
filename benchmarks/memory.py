"""GPU memory as `kto-sweep plan` predicts it against what the engine takes, a process for each configuration.

    PYTHONPATH=. python benchmarks/memory.py --data rows.jsonl --tokenizer FOLDER_OR_GGUF [--jobs 2]

A configuration is an architecture of Qwen2.5 with random weights, how they are held, the number of trials
together, the batch of each, and what else differs from rank 16, AdamW and kept activations. Columns: GiB of
the weights, of the adapters, at the peak of some steps and at that of an evaluation, predicted and measured;
the prediction knows the tokens of exactly these steps. Model and tokenizer need no network.
"""

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kto_sweep.models.architecture import Architecture, Recompute
from kto_sweep.models.presets import IN_FP8
from kto_sweep.plan.memory import GIB, StepLoad, peak_memory, scoring_peak
from kto_sweep.plan.timing import adapter_shape
from kto_sweep.trial import Trial

STEPS, MAX_LENGTH, HELD_OUT = 10, 1024, 64
VOCABULARY = 151936


@dataclass(frozen=True)
class Case:
    """One configuration."""

    size: str
    quantization: str
    together: int
    batch: int
    rank: int = 16
    recompute: Recompute = Recompute.NOTHING
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    dropout: float = 0.0

    def trial(self, seed: int) -> Trial:
        return Trial(
            model="random", dataset="rows", batch_size=self.batch, max_length=MAX_LENGTH, lora_r=self.rank,
            seed=seed, max_steps=STEPS, optimizer=self.optimizer, lora_dropout=self.dropout,
        )  # fmt: skip


CASES = (
    Case("7b", "none", 1, 8),
    Case("7b", "none", 2, 8),
    Case("7b", "none", 4, 4),
    Case("7b", "none", 1, 16, recompute=Recompute.LAYER),
    Case("7b", "none", 2, 16, recompute=Recompute.MLP),
    Case("7b", "4bit", 1, 8),
    Case("7b", "4bit", 4, 8),
    Case("7b", "4bit", 2, 16, recompute=Recompute.LAYER),
    Case("7b", "4bit", 2, 8, recompute=Recompute.MLP),
    Case("7b", "fp8", 1, 8),
    Case("7b", "fp8", 3, 8),
    Case("7b", "4bit-fp8", 4, 8, recompute=Recompute.MLP),
    Case("1.5b", "none", 1, 4),
    Case("1.5b", "none", 4, 8),
    Case("1.5b", "none", 8, 16),
    Case("1.5b", "4bit", 2, 8),
    Case("1.5b", "none", 4, 8, optimizer="adamw_8bit", rank=64),
    Case("0.5b", "none", 1, 8),
    Case("0.5b", "none", 8, 8),
    Case("0.5b", "none", 2, 16, dropout=0.1),
    Case("0.5b", "4bit", 8, 4),
)


def architecture(size: str) -> Architecture:
    from common import ARCHITECTURES

    config = {"model_type": "qwen2", "vocab_size": VOCABULARY, **ARCHITECTURES[size]}
    return Architecture.from_config(config)


def random_model(case: Case) -> Any:
    """The architecture in bf16 on the GPU; its layers' matrices packed as the trainer's are."""
    import torch
    from common import ARCHITECTURES
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from kto_sweep.train.packed.fp8 import multiply_in_fp8

    config = Qwen2Config(
        **ARCHITECTURES[case.size], vocab_size=VOCABULARY, max_position_embeddings=32768, dtype=torch.bfloat16
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Qwen2ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    if case.quantization.startswith("4bit"):
        pack_weights(model)
    if case.quantization in IN_FP8:
        multiply_in_fp8(model, torch.device("cuda"))
    return model.requires_grad_(False).eval()


def pack_weights(model: Any) -> None:
    """Linear layers in NF4 with quantised constants, the output layer aside."""
    import torch
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear and layer is not head:
                packed = Linear4bit(
                    layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta",
                    compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4",
                )  # fmt: skip
                packed.bias = layer.bias
                weight: Any = Params4bit(
                    layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4"
                )
                packed.weight = weight.to("cuda")
                setattr(parent, name, packed)


def measure(case: Case, rows_file: Path) -> dict[str, Any]:
    """What one configuration takes, in this process."""
    import torch

    from kto_sweep.train.packed.compatibility import packed_decoder
    from kto_sweep.train.packed.engine import Engine
    from kto_sweep.train.packed.slot import ReferenceRows

    rows = pickle.loads(rows_file.read_bytes())
    decoder = packed_decoder(random_model(case))
    decoder.set_recompute(Recompute(case.recompute))
    torch.cuda.empty_cache()
    weights = torch.cuda.memory_allocated()
    train, held_out = (
        ReferenceRows(part, np.zeros((len(part), 2))) for part in (rows[HELD_OUT:], rows[:HELD_OUT])
    )
    engine = Engine(decoder, train, held_out, slots=case.together)
    for slot in range(case.together):
        engine.join(slot, case.trial(slot))
    adapted = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(STEPS):
        engine.step().read()
    seconds = (time.perf_counter() - began) / STEPS
    stepping = torch.cuda.max_memory_allocated()
    assert engine.limit.tokens is None, "memory ran out and steps were split"
    torch.cuda.reset_peak_memory_stats()
    engine.evaluate(0)
    return {
        "weights": weights / GIB,
        "adapters": (adapted - weights) / GIB,
        "step": stepping / GIB,
        "scoring": torch.cuda.max_memory_allocated() / GIB,
        "seconds": seconds,
    }


def predict(case: Case, rows: Sequence[Any]) -> dict[str, float]:
    """The same by the formulas."""
    from kto_sweep.data.split import all_batches

    train, held_out = rows[HELD_OUT:], rows[:HELD_OUT]
    model, shape = architecture(case.size), adapter_shape(case.trial(0), case.together)
    orders = [list(all_batches(len(train), case.batch, STEPS, seed)) for seed in range(case.together)]
    loads = [load_of([[train[at] for at in order[step][1]] for order in orders]) for step in range(STEPS)]
    peaks = [peak_memory(model, case.quantization, shape, load, recompute=case.recompute) for load in loads]
    fullest = max(peaks, key=lambda found: found.total)
    scored = load_of([held_out])
    return {
        "weights": fullest.weights / GIB,
        "adapters": fullest.adapters / GIB,
        "step": fullest.gib,
        "scoring": scoring_peak(model, case.quantization, shape, scored.tokens + scored.mismatched).gib,
    }


def load_of(slots: Sequence[Sequence[Any]]) -> StepLoad:
    """Of one forward with these rows in each slot; what prompts of a slot begin with is fed once."""
    import torch

    from kto_sweep.train.packed.pack import Item, pack

    rows = [row for own in slots for row in own]
    items = [Item(row, slot) for slot, own in enumerate(slots) for row in own]
    fed = pack(items, len(slots), torch.device("cpu")).tokens
    return StepLoad(fed, sum(len(row.completion) for row in rows), sum(len(row.mismatched) for row in rows))


def run(case: Case, rows_file: Path) -> dict[str, Any] | str:
    """What a fresh process measures, or why it did not."""
    command = [sys.executable, __file__, "--one", json.dumps(asdict(case)), "--rows", str(rows_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or ["no word"])[-1]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def table(
    cases: list[Case], rows: Sequence[Any], rows_file: Path, jobs: int, minutes: float
) -> Iterator[str]:
    """Markdown, a line as soon as it is measured; no configuration is begun after so many minutes."""
    names = ("weights", "adapters", "step", "scoring")
    yield "| size | weights | trials | batch | also | " + " | ".join(names) + " | s per step |"
    yield "|---|---|---|---|---|" + "---|" * (len(names) + 1)
    end = time.monotonic() + 60 * minutes
    errors: list[float] = []

    def late(case: Case) -> dict[str, Any] | str:
        return run(case, rows_file) if time.monotonic() < end else "no time left"

    with ThreadPoolExecutor(jobs) as pool:
        for case, found in zip(cases, pool.map(late, cases), strict=True):
            also: dict[str, Any] = {"r": case.rank} if case.rank != 16 else {}
            also |= {"dropout": case.dropout} if case.dropout else {}
            also |= {"recompute": case.recompute.name.lower()} if case.recompute else {}
            also |= {"optimizer": case.optimizer} if case.optimizer != "adamw" else {}
            words = ", ".join(f"{name} {value}" for name, value in also.items())
            begin = f"| {case.size} | {case.quantization} | {case.together} | {case.batch} | {words} |"
            if isinstance(found, str):
                yield f"{begin} {found} |"
                continue
            told = predict(case, rows)
            errors.append(told["step"] / found["step"] - 1)
            cells = [
                f"{told[name]:.2f} / {found[name]:.2f} ({told[name] / found[name] - 1:+.0%})"
                for name in names
            ]
            yield f"{begin} {' | '.join(cells)} | {found['seconds']:.3f} |"
    if errors:
        worst = max(errors, key=abs)
        mean = sum(errors) / len(errors)
        yield f"\nPeak of a step, {len(errors)} configurations: worst error {worst:+.1%}, mean {mean:+.1%}."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="a data file")
    parser.add_argument("--tokenizer", help="folder or .gguf file with a tokenizer and its chat template")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once, on one GPU")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(Case(**json.loads(options.one)), options.rows)))
        return

    from kto_sweep.data.load import load_tokens
    from kto_sweep.data.split import partners
    from kto_sweep.models.tokenizer import load_tokenizer
    from kto_sweep.train.packed.pack import PairedRows

    data = load_tokens(options.data, load_tokenizer(options.tokenizer)).table.cut(MAX_LENGTH)
    rows = PairedRows(data, partners(data, 0), MAX_LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        rows_file = Path(folder) / "rows.pickle"
        rows_file.write_bytes(pickle.dumps(rows))
        for line in table(list(CASES), rows, rows_file, options.jobs, options.minutes):
            print(line, flush=True)


if __name__ == "__main__":
    main()
