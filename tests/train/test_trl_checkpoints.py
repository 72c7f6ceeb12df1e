"""Trials of TRL's trainer that are interrupted and continue, and the files that they leave."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from trl_cases import TrlRecorder, make_base, make_data, make_trial, train

from kto_sweep.data.dataset import TrainingData
from kto_sweep.train.base_model import LoadedBase
from kto_sweep.train.trial.request import TrialRequest
from kto_sweep.train.trl.trainer import train_trl
from kto_sweep.train.worker.admission_queue import AdmissionQueue
from kto_sweep.train.worker.cotrainer import CoTrainer

CHECKPOINT = "checkpoint/last.safetensors"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return make_base()


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return make_data()


@pytest.mark.parametrize("full_finetune", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_stopped_trial_continues_as_if_it_had_not_stopped(
    data: TrainingData, tmp_path: Path, full_finetune: bool
) -> None:
    more = {"learning_rate": 0.003} if full_finetune else {"lora_dropout": 0.2, "learning_rate": 0.05}
    trial = make_trial(max_steps=12, eval_steps=4, full_finetune=full_finetune, **more)
    whole = train(trial, make_base(), data, tmp_path / "whole")[1]
    stopped, first = train(trial, make_base(), data, tmp_path / "parts", stop_after=5)
    assert (stopped.steps, stopped.stopped) == (5, True)
    assert (tmp_path / "parts" / "out" / CHECKPOINT).is_file()
    finished, second = train(trial, make_base(), data, tmp_path / "parts")
    assert second.planned == [(12, 5)]
    assert {**first.values, **second.values} == whole.values
    assert finished.summary["trial/examples"] == 12 * 4 - 3  # one batch has one row
    product = "model/model" if full_finetune else "adapter/adapter_model"
    parts, expected = (
        (tmp_path / which / "out" / f"{product}.safetensors").read_bytes() for which in ("parts", "whole")
    )
    assert parts == expected
    _, again = train(trial, make_base(), data, tmp_path / "parts", logged=11)
    assert again.values == {12: whole.values[12]}


@pytest.mark.slow  # the packed trainer has the same test
def test_rows_after_the_checkpoint_are_reported_once(data: TrainingData, tmp_path: Path) -> None:
    trial = make_trial(max_steps=10, eval_steps=4)

    class Crashing(TrlRecorder):
        def metrics(self, step: int, values: Mapping[str, float]) -> None:
            super().metrics(step, values)
            if step == 7:
                raise KeyboardInterrupt

    crashed = Crashing()
    with pytest.raises(KeyboardInterrupt):
        train_trl(
            TrialRequest("run", trial, tmp_path / "out", crashed), make_base(), data, reference_dir=tmp_path
        )
    _, after = train(trial, make_base(), data, tmp_path, logged=7)
    assert "resuming after step 4" in after.notes  # there is a checkpoint after each evaluation
    assert list(crashed.rows) == [1, 2, 3, 4, 5, 6, 7]
    assert list(after.rows) == [8, 9, 10]
    assert sorted(path.name for path in (tmp_path / "out" / "checkpoint").iterdir()) == [
        "last.safetensors",
        "rows.jsonl",
    ]


def test_the_best_adapters_are_kept(base: LoadedBase, data: TrainingData, tmp_path: Path) -> None:
    trial = make_trial(max_steps=6, eval_steps=1, learning_rate=1.0, lr_scheduler="constant")
    _, report = train(trial, base, data, tmp_path)
    losses = {step: row["eval/common_loss"] for step, row in report.evaluations.items()}
    best = min(losses, key=lambda step: losses[step])
    assert best < 6
    kept = safetensors.torch.load_file(tmp_path / "out" / "best" / "adapter_model.safetensors")
    train(trial, base, data, tmp_path / "cut", stop_after=best)
    expected = safetensors.torch.load_file(tmp_path / "cut" / "out" / "adapter" / "adapter_model.safetensors")
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in kept)


def test_a_checkpoint_of_the_packed_trainer_is_not_used(
    base: LoadedBase, data: TrainingData, tmp_path: Path
) -> None:
    trial = make_trial(max_steps=6)
    queue = AdmissionQueue()
    with contextlib.closing(CoTrainer(base, data, trial, queue, cache=tmp_path / "reference")) as packed:
        report = TrlRecorder()
        queue.put(TrialRequest("run", trial, tmp_path / "out", report, lambda: len(report.rows) >= 3))
        while not packed.step():
            pass
    _, after = train(trial, base, data, tmp_path)
    assert any("trainer None (now trl)" in note for note in after.notes)
    assert list(after.rows) == [1, 2, 3, 4, 5, 6]
