"""Trials of TRL's trainer: a random model, random rows, and a report with evaluations apart."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from cotrainer_cases import Recorder
from transformers import LlamaConfig, LlamaForCausalLM

from kto_sweep.data.dataset import TrainingData
from kto_sweep.data.rows import TokenRow
from kto_sweep.data.split import split_by_prompt
from kto_sweep.data.table import RowTable
from kto_sweep.models.tiny import Recipe, make_tokenizer
from kto_sweep.train.base_model import LoadedBase
from kto_sweep.train.trial.request import TrainResult, TrialRequest
from kto_sweep.train.trl.trainer import train_trl
from kto_sweep.trial import Trial


class TrlRecorder(Recorder):
    """A Recorder with training and evaluation metrics apart."""

    @property
    def steps(self) -> list[dict[str, float]]:
        """Training metrics of each step."""
        return [
            {name: value for name, value in row.items() if not name.startswith("eval/")}
            for row in self.rows.values()
        ]

    @property
    def evaluations(self) -> dict[int, dict[str, float]]:
        """Evaluation metrics by step."""
        rows = {
            step: {name: value for name, value in row.items() if name.startswith("eval/")}
            for step, row in self.rows.items()
        }
        return {step: row for step, row in rows.items() if row}


def make_base(dtype: torch.dtype = torch.float32, device: str = "cpu", **config: Any) -> LoadedBase:
    tokenizer = make_tokenizer(Recipe(vocabulary=300, tokenizer_texts=20))
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.2,
            **{"hidden_size": 32, **config},
        )
    )
    model.requires_grad_(False).train(False).to(device, dtype)
    return LoadedBase("random", model, tokenizer, dtype, "none")


def make_data() -> TrainingData:
    """29 training rows, so the last batch of 4 has one row; desirable completions have small token ids."""
    rng = np.random.default_rng(0)
    rows = []
    for at in range(40):
        label, group = at % 3 > 0, at // 2
        prompt = [10 + group, *np.random.default_rng(group).integers(10, 290, group % 7).tolist()]
        low, high = (10, 20) if label else (280, 290)
        rows.append(TokenRow(prompt, rng.integers(low, high, rng.integers(2, 9)).tolist(), label, group))
    train, held_out = split_by_prompt(RowTable.from_rows(rows), 0.2, seed=0)
    return TrainingData.paired("rows.jsonl", train[:29], held_out, max_length=64)


def make_trial(**config: Any) -> Trial:
    return Trial.from_config(
        {
            "model": "random",
            "dataset": "rows.jsonl",
            "batch_size": 4,
            "max_length": 16,
            "learning_rate": 0.01,
            "warmup_ratio": 0.0,
            "lora_r": 4,
            **config,
        }
    )


def train(
    trial: Trial,
    base: LoadedBase,
    data: TrainingData,
    folder: Path,
    stop_after: int | None = None,
    logged: int | None = None,
) -> tuple[TrainResult, TrlRecorder]:
    report = TrlRecorder()

    def should_stop() -> bool:
        return stop_after is not None and max(report.rows, default=0) >= stop_after

    request = TrialRequest("run", trial, folder / "out", report, should_stop, logged)
    return train_trl(request, base, data, reference_dir=folder / "reference"), report
