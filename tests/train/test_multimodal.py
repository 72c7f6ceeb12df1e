"""Vision-language models: their text decoder is trained in place, and their adapters load on the original."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cotrainer_cases import Recorder, make_trial
from peft import PeftModel
from safetensors.torch import load_file
from small_models import VISION_LANGUAGE_MODELS, save, small_model
from transformers import AutoModelForImageTextToText

from kto_sweep.data.dataset import TrainingData
from kto_sweep.data.rows import TokenRow
from kto_sweep.data.table import RowTable
from kto_sweep.home import Home
from kto_sweep.models.architecture import find_architecture
from kto_sweep.train.base_model import LoadedBase, load_base
from kto_sweep.train.trial.request import TrialRequest
from kto_sweep.train.trl.trainer import train_trl
from kto_sweep.train.worker.admission_queue import AdmissionQueue
from kto_sweep.train.worker.cotrainer import CoTrainer
from kto_sweep.trial import Trial

CPU = torch.device("cpu")


def make_data() -> TrainingData:
    rng = np.random.default_rng(0)
    rows = [
        TokenRow(rng.integers(10, 390, 4).tolist(), rng.integers(10, 390, 5).tolist(), bool(at % 2), at)
        for at in range(12)
    ]
    return TrainingData.paired("rows", RowTable.from_rows(rows[:8]), RowTable.from_rows(rows[8:]), 24)


def load(folder: Path) -> LoadedBase:
    return load_base(str(folder), quantization="none", device=CPU, home=Home(folder.parent / "home"))


@pytest.mark.parametrize("kind", VISION_LANGUAGE_MODELS)
def test_its_text_decoder_is_trained_and_the_adapters_load_on_the_original(kind: str, tmp_path: Path) -> None:
    folder = save(small_model(kind), tmp_path / kind)
    base, queue, report = load(folder), AdmissionQueue(), Recorder()
    stored = load_file(folder / "model.safetensors")
    vision = next(name for name in stored if "vis" in name)
    assert any(torch.equal(stored[vision], weight) for weight in base.model.state_dict().values())
    trial = make_trial(max_steps=2)
    queue.put(TrialRequest("run", trial, tmp_path / "run", report, lambda: False))
    trainer = CoTrainer(base, make_data(), trial, queue, cache=tmp_path / "cache")
    while not trainer.step():
        pass
    trainer.close()
    assert len(report.rows) == 2
    weights = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert len(weights) == 2 * 2 * 7, "two layers with seven linear layers, and none that sees images"
    assert any(name.endswith("lora_B.weight") and weight.any() for name, weight in weights.items())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*deprecated", FutureWarning)  # of transformers, to peft
        original = AutoModelForImageTextToText.from_pretrained(folder)
        tuned = PeftModel.from_pretrained(original, str(tmp_path / "run" / "adapter"))
    loaded = {
        name.replace(".default", ""): weight for name, weight in tuned.named_parameters() if "lora_" in name
    }
    assert loaded.keys() == weights.keys()
    for name, weight in loaded.items():
        assert torch.equal(weight, weights[name])


def test_full_fine_tuning_changes_its_text_decoder_alone(tmp_path: Path) -> None:
    folder = save(small_model("qwen2_vl"), tmp_path / "model")
    trial = Trial(
        model=str(folder), dataset="rows", full_finetune=True, max_steps=1, max_length=24, warmup_ratio=0.0,
        learning_rate=1e-2, batch_size=4,
    )  # fmt: skip
    (folder / "preprocessor_config.json").write_text("{}")
    request = TrialRequest("run", trial, tmp_path / "run", Recorder(), lambda: False)
    train_trl(request, load(folder), make_data(), reference_dir=tmp_path / "cache")
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any("visual" in name for name in changed)
    assert (tmp_path / "run" / "model" / "preprocessor_config.json").exists()


def test_its_sizes_are_those_of_its_text_decoder(tmp_path: Path) -> None:
    sizes = find_architecture(str(save(small_model("llava"), tmp_path / "llava")))
    assert sizes is not None
    assert (sizes.layers, sizes.hidden) == (2, 32)
