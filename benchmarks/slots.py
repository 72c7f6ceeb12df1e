"""How many trials at once `--trials-per-gpu auto` chooses, and what it saw on the way.

    PYTHONPATH=. python benchmarks/slots.py --sizes 0.5b,1.5b,7b

Random weights and random rows, of the lengths of short conversations; trials join as soon as there is room.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from common import ARCHITECTURES
from transformers import Qwen2Config, Qwen2ForCausalLM

from kto_sweep.alerts import RunAlert
from kto_sweep.data.dataset import TrainingData
from kto_sweep.data.rows import TokenRow
from kto_sweep.data.table import RowTable
from kto_sweep.provenance import Provenance
from kto_sweep.train.base_model import LoadedBase
from kto_sweep.train.trial.request import TrialRequest
from kto_sweep.train.worker.admission_queue import AdmissionQueue
from kto_sweep.train.worker.concurrency import ConcurrencyTuner
from kto_sweep.train.worker.cotrainer import CoTrainer
from kto_sweep.trial import Trial

ROWS = 400


class Quiet:
    """A Report of which nobody hears."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def loaded(self, provenance: Provenance) -> None:
        """Nothing."""

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        """Nothing."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def alert(self, alert: RunAlert) -> None:
        """Nothing."""


def rows(vocabulary: int) -> TrainingData:
    """Rows of 100 to 1024 tokens, most of them about 500."""
    rng = np.random.default_rng(0)

    def some(mean: float) -> list[int]:
        length = int(np.clip(rng.lognormal(np.log(mean), 0.5), 50, 512))
        return rng.integers(3, vocabulary, length).tolist()

    train = RowTable.from_rows(TokenRow(some(350), some(130), bool(i % 2), i) for i in range(ROWS))
    return TrainingData.paired("random", train, train[:0], 1024)


def measure(size: str, folder: Path) -> None:
    """Print what the tuner decides until it has settled."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    vocabulary = 1000 if size == "tiny" else 151936
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = Qwen2ForCausalLM(Qwen2Config(**ARCHITECTURES[size], vocab_size=vocabulary)).eval()
    torch.set_default_dtype(torch.float32)
    base = LoadedBase(size, model.requires_grad_(False), None, dtype, "none")  # type: ignore[arg-type]
    trial = Trial(model=size, dataset="random", max_length=1024, batch_size=8, max_steps=2000)
    begin = time.perf_counter()
    queue, tuner = AdmissionQueue(), ConcurrencyTuner()
    trainer = CoTrainer(base, rows(vocabulary), trial, queue, cache=folder / "reference", tuner=tuner)
    decided = None
    started = 0
    while not tuner._settled:
        while started < trainer.concurrency.slots:
            queue.put(TrialRequest(str(started), trial, folder / size / str(started), Quiet()))
            started += 1
        trainer.step()
        if trainer.concurrency != decided:
            decided = trainer.concurrency
            rates = {slots: round(rate) for slots, rate in tuner._rates.items()}
            gib = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
            seconds = time.perf_counter() - begin
            print(
                f"{size} {seconds:6.1f} s, peak {gib:5.1f} GiB, tokens/s {rates}: {decided.reason}",
                flush=True,
            )
    trainer.close()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="0.5b,1.5b,7b")
    with tempfile.TemporaryDirectory() as folder:
        for size in parser.parse_args().sizes.split(","):
            measure(size, Path(folder))


if __name__ == "__main__":
    main()
