"""One trial as people run it today: TRL's KTOTrainer with LoRA, in a process of its own.

makespan.py starts it; `make_trainer` is also what step.py measures.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RANK, TRL_TUNED, peak_gib, wait_for_device, write_json
from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import KTOConfig, KTOTrainer

from kto_sweep.home import Home
from kto_sweep.train.base_model import LoadedBase, load_base
from kto_sweep.train.device import pick_device


class StepTimes(TrainerCallback):
    """Seconds of each optimizer step of a transformers trainer; `between` is called after each, untimed."""

    def __init__(self, between: Callable[[], object] = lambda: None) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        """That this process computed."""
        self.first_began = 0.0
        """Seconds since the epoch."""
        self._between = between
        self._begin = self._cpu_begin = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        wait_for_device()
        self.first_began = self.first_began or time.time()
        self._begin, self._cpu_begin = time.perf_counter(), time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        wait_for_device()
        self.seconds.append(time.perf_counter() - self._begin)
        self.cpu_seconds.append(time.process_time() - self._cpu_begin)
        self._between()


def make_trainer(
    base: LoadedBase,
    rows: Dataset,
    times: StepTimes,
    folder: str,
    *,
    held_out: Dataset | None = None,
    learning_rate: float = 5e-6,
    **settings: Any,
) -> KTOTrainer:
    """TRL's trainer with its own defaults, but for `settings` and the LoRA that our trials have too."""
    cuda = base.model.device.type == "cuda"
    arguments = KTOConfig(
        output_dir=folder, learning_rate=learning_rate, report_to="none", logging_strategy="no",
        save_strategy="no", bf16=cuda, use_cpu=not cuda, dataloader_pin_memory=cuda, disable_tqdm=True,
        **settings,
    )  # fmt: skip
    return KTOTrainer(
        model=base.model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=base.tokenizer,
        peft_config=LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[times],
    )


def train(options: argparse.Namespace) -> dict[str, Any]:
    """When what was done, in seconds since the epoch, and the seconds of each step."""
    base = load_base(
        options.model,
        quantization=options.quantization,
        device=pick_device(),
        home=Home.from_environment(),
    )
    files = {"train": options.rows, "held_out": options.held_out}
    data = {name: load_dataset("json", data_files=str(path), split="train") for name, path in files.items()}
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            base, data["train"], times, folder,
            held_out=data["held_out"], learning_rate=options.learning_rate,
            per_device_train_batch_size=options.batch_size, max_steps=options.steps,
            max_length=options.max_length, **(TRL_TUNED if options.tuned else {}),
        )  # fmt: skip
        trainer.train()
        trained = time.time()
        trainer.evaluate()
        evaluated = time.time()
        trainer.save_model(folder)
    return {
        "began_stepping": times.first_began,
        "step_s": times.seconds,
        "trained": trained,
        "evaluated": evaluated,
        "peak_gib": peak_gib(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines as TRL reads them")
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--quantization", choices=["none", "4bit"], default="none")
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        told = train(options)
    except torch.OutOfMemoryError:
        told = {"error": "out of memory", "peak_gib": peak_gib()}
    write_json(options.out, told)
    print(json.dumps({name: value for name, value in told.items() if name != "step_s"}))


if __name__ == "__main__":
    main()
