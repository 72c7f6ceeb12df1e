"""What the benchmarks of speed share: models with random weights, rows, the machine's ceiling, tables."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from kto_sweep.data.dataset import prepare_data
from kto_sweep.data.examples import read_examples
from kto_sweep.data.load import load_tokens
from kto_sweep.data.rows import Example
from kto_sweep.data.split import all_batches
from kto_sweep.train.packed.pack import PairedRows

RANK = 16
SEED = 42
"""Of the order of rows: a trial's own default."""
MISMATCHED_AND_BACKWARD = 2.53
"""Forwards that a step cannot do without: policy, gradient of its inputs, mismatched completions."""
TRL_TUNED = {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
"""What makes TRL's KTOTrainer faster where memory allows it."""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
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
"""Qwen2.5's, and one for a quick look whether a benchmark runs."""


def random_model(size: str, tokenizer: str, folder: Path) -> str:
    """The folder of a model of this size with random bf16 weights; made below `folder` if it is not there."""
    final = folder / f"random-{size}"
    if final.is_dir():
        return str(final)
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".random-", dir=folder))
    words = tokenizer_of(tokenizer)
    vocabulary = len(words) if size == "tiny" else 151936
    torch.manual_seed(0)
    config = Qwen2Config(
        **ARCHITECTURES[size], vocab_size=vocabulary, max_position_embeddings=32768, dtype=torch.bfloat16
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    try:
        model.save_pretrained(aside)
        words.save_pretrained(aside)
        aside.rename(final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return str(final)


def tokenizer_of(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or .gguf file."""
    folder, arguments = _source(model)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **arguments)
    return tokenizer


def matmul_weights(model: str) -> int:
    """Weights that each token is multiplied with in one forward, the output layer aside."""
    folder, arguments = _source(model)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, **arguments))
    layers = (layer for layer in empty.base_model.modules() if isinstance(layer, torch.nn.Linear))
    return sum(layer.in_features * layer.out_features for layer in layers)


def least_work(weights: int, tokens: float) -> float:
    """TFLOP that training on so many prompt and completion tokens takes at least."""
    return 2 * MISMATCHED_AND_BACKWARD * weights * tokens / 1e12


def _source(model: str) -> tuple[str, dict[str, str]]:
    path = Path(model)
    return (str(path.parent), {"gguf_file": path.name}) if path.suffix == ".gguf" else (model, {})


@dataclass(frozen=True)
class Rows:
    """The rows of a data file, split and paired as trials have them."""

    train: PairedRows
    examples: list[Example]
    """What each training row was read from."""
    held_out: list[Example]

    def order(self, batch_size: int, steps: int) -> list[int]:
        """The rows of a trial's first batches, one after another."""
        batches = all_batches(len(self.train), batch_size, steps, SEED)
        return [at for _, batch in batches for at in batch]


def load_rows(
    data: str, tokenizer: PreTrainedTokenizerBase, max_length: int, eval_fraction: float = 0.0
) -> Rows:
    """The rows of `data` that can be trained on."""
    by_line = {example.line: example for example in read_examples(data)[1]}
    loaded = load_tokens(data, tokenizer)
    prepared = prepare_data(loaded, eval_fraction=eval_fraction, max_length=max_length)
    return Rows(
        PairedRows(prepared.train, prepared.train_partners, max_length),
        [by_line[line] for line in prepared.train.lines.tolist()],
        [by_line[line] for line in prepared.eval.lines.tolist()],
    )


def for_trl(example: Example) -> dict[str, Any]:
    """A row as TRL reads it."""
    prompt, completion = (
        text if isinstance(text, str) else list(text) for text in (example.prompt, example.completion)
    )
    return {"prompt": prompt, "completion": completion, "label": example.label}


def matmul_ceiling() -> float:
    """TFLOP/s of a large bf16 matrix product on random data, on the GPU."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(10):
        a @ b
    torch.cuda.synchronize()
    return 10 * 2 * 8192**3 / (time.perf_counter() - begin) / 1e12


def describe_machine(ceiling: float | None) -> str:
    """The hardware and its ceiling, in one line."""
    if ceiling is None:
        return f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}; bf16 matmul {ceiling:.0f} TFLOP/s"


def memory_fraction(gib: float) -> float:
    """The share of the GPU's memory that so many GiB are."""
    return min(1.0, gib * 2**30 / torch.cuda.get_device_properties(0).total_memory)


def wait_for_device() -> None:
    """Return when the GPU, if there is one, has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_gib() -> float | None:
    """The most GPU memory that tensors of this process have held."""
    if not torch.cuda.is_available():
        return None
    return round(torch.cuda.max_memory_allocated() / 2**30, 1)


@contextmanager
def scratch_folder(named: Path | None) -> Iterator[Path]:
    """The folder that was named, or one that is gone afterwards."""
    if named is not None:
        named.mkdir(parents=True, exist_ok=True)
        yield named.resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def print_table(table: Sequence[Mapping[str, Any]]) -> None:
    """The rows in Markdown."""
    columns = list(dict.fromkeys(name for row in table for name in row))
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in table:
        cells = [row.get(name) for name in columns]
        shown = (
            "" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells
        )
        print("| " + " | ".join(shown) + " |")


def write_json(path: Path, content: object) -> None:
    """Write `content` for people and programs."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
