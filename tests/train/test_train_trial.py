"""One trial in this process, as wandb's own agents train it: train_trial."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cotrainer_cases import Recorder
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from kto_sweep.errors import DataError, TrialFailure, UsageError
from kto_sweep.home import Home
from kto_sweep.train.context import WorkerContext
from kto_sweep.train.tiny import tiny_model
from kto_sweep.train.worker.loop import train_trial
from kto_sweep.trial import Trial

torch.set_num_threads(1)

ROWS = Path(__file__).parents[2] / "examples" / "support_replies.jsonl"


@pytest.fixture(scope="module")
def context(home: Home) -> WorkerContext:
    return WorkerContext(home, torch.device("cpu"))


def make_trial(**more: Any) -> Trial:
    values = {"max_length": 96, "max_steps": 3, "batch_size": 4, "model": "tiny", "dataset": str(ROWS)}
    return Trial(**values | more)


def test_trials_train_one_after_another(context: WorkerContext, tmp_path: Path) -> None:
    for at, trial in enumerate([make_trial(), make_trial(learning_rate=1e-3), make_trial(max_length=64)]):
        report = Recorder()
        result = train_trial(context, trial, tmp_path / str(at), report, lambda: False)
        assert list(report.rows) == [1, 2, 3]
        assert result.summary["eval/common_loss"] == report.rows[3]["eval/common_loss"]
        assert result.summary["trial/eval_data"] == context.data(trial).eval_fingerprint


def test_a_trial_that_is_stopped_continues_the_next_time(context: WorkerContext, tmp_path: Path) -> None:
    report = Recorder()
    result = train_trial(context, make_trial(max_steps=9), tmp_path, report, lambda: len(report.rows) >= 4)
    assert (result.steps, result.stopped) == (4, True)
    after = Recorder()
    assert not train_trial(context, make_trial(max_steps=9), tmp_path, after, lambda: False).stopped
    assert list(after.rows) == [5, 6, 7, 8, 9]


def test_an_error_fails_its_trial_and_not_the_next(context: WorkerContext, tmp_path: Path) -> None:
    for wrong, kind in (
        (make_trial(dataset="no-such-file.jsonl"), DataError),
        (make_trial(model="./no-such-folder"), UsageError),
        (make_trial(lora_targets=("no_such",)), UsageError),
        (
            make_trial(learning_rate=1.0, max_grad_norm=0, warmup_ratio=0, weight_decay=1e30, max_steps=9),
            TrialFailure,
        ),
    ):
        with pytest.raises(kind):
            train_trial(context, wrong, tmp_path / "wrong", Recorder(), lambda: False)
    train_trial(context, make_trial(), tmp_path / "right", Recorder(), lambda: False)


def test_a_model_that_cannot_be_packed_is_trained_with_trl(
    context: WorkerContext, home: Home, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(home.models))
    config = CONFIG_MAPPING["stablelm"](
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    report = Recorder()
    trial = make_trial(model=str(tmp_path / "model"), max_steps=2)
    result = train_trial(context, trial, tmp_path / "out", report, lambda: False)
    assert result.steps == 2
    # Another model, judged on the same rows: the two trials compare.
    assert result.summary["trial/eval_data"] == context.data(make_trial()).eval_fingerprint
    assert any("TRL's trainer trains it instead" in note for note in report.notes)
    adapters = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors").values()
    model = json.loads((tmp_path / "out" / "lineage.json").read_text())["model"]
    assert (model["type"], model["architecture"]) == ("stablelm", "StableLmForCausalLM")
    assert (model["layers"], model["hidden_size"]) == (1, 32)
    assert model["trainable_parameters"] == sum(tensor.numel() for tensor in adapters)
