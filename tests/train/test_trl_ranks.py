"""One trial in several processes: the same numbers as in one; if one process dies, all end."""

import multiprocessing
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from cotrainer_cases import Recorder, expect_same
from forked_python import TORCH, executable
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from kto_sweep.errors import FailureCause, TrialFailure
from kto_sweep.home import Home
from kto_sweep.train.context import WorkerContext
from kto_sweep.train.device import LostProcessError
from kto_sweep.train.tiny import tiny_model
from kto_sweep.train.trial.request import TrainResult, TrialRequest
from kto_sweep.train.trl.launcher import train_in_ranks
from kto_sweep.train.trl.trainer import train_with_trl
from kto_sweep.trial import Trial

# PEFT and TRL use names that transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")

torch.set_num_threads(1)

ROWS = Path(__file__).parents[2] / "examples" / "support_replies.jsonl"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 training rows: in batches of 4 the last of an epoch has one row, so one process has none."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(ROWS.read_text().splitlines(keepends=True)[:23]))
    return path


@pytest.fixture(autouse=True)
def forked_ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ranks with one thread each that need not spend seconds on importing TRL."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "bin").mkdir()
    python = str(executable(tmp_path / "bin", TORCH))
    monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(python))


def make_trial(rows: Path, **more: Any) -> Trial:
    values = {
        "model": "tiny",
        "dataset": str(rows),
        "batch_size": 4,
        "max_length": 96,
        "max_steps": 9,
        "eval_steps": 3,
        "learning_rate": 3e-3,
    }
    return Trial(**values | more)


def train(
    trial: Trial,
    home: Home,
    folder: Path,
    devices: int,
    *,
    stop_after: int = 10**9,
    logged: int | None = None,
    report: Recorder | None = None,
) -> tuple[TrainResult, Recorder]:
    report = report or Recorder()
    request = TrialRequest(
        "run", trial, folder, report, lambda: max(report.rows, default=0) >= stop_after, logged
    )
    if devices > 1:
        return train_in_ranks(request, home, devices), report
    return train_with_trl(WorkerContext(home, torch.device("cpu")), request), report


class Killing(Recorder):
    """Kills one of the processes at step 5."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        super().metrics(step, values)
        if step == 5:
            [victim] = [child for child in multiprocessing.active_children() if child.name == "rank 1"]
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)


def test_two_processes_give_the_numbers_of_one_and_both_end_if_one_dies(
    home: Home, rows: Path, tmp_path: Path
) -> None:
    trial = make_trial(rows)
    _, alone = train(trial, home, tmp_path / "1", 1)
    both = Killing()
    with pytest.raises(LostProcessError, match="process 2 of 2 ended with signal 9"):
        train(trial, home, tmp_path / "2", 2, report=both)
    assert not multiprocessing.active_children()
    assert "trained on 2 devices" in both.notes[0]
    result, after = train(trial, home, tmp_path / "2", 2, logged=max(both.rows))
    assert after.planned == [(9, max(both.rows))]
    assert after.provenance.model == alone.provenance.model is not None
    assert any(note.startswith("resuming after step") for note in after.notes)
    both.rows.update(after.rows)
    expect_same(both, alone, 1e-5)
    assert result.summary["trial/examples"] == 9 * 4 - 3  # the last batch of an epoch has one row


def test_a_trial_that_diverges_has_that_cause(home: Home, rows: Path, tmp_path: Path) -> None:
    trial = make_trial(rows, learning_rate=1.0, max_grad_norm=0, warmup_ratio=0, weight_decay=1e30)
    with pytest.raises(TrialFailure) as raised:
        train(trial, home, tmp_path, 2)
    assert raised.value.cause is FailureCause.DIVERGED


def test_a_batch_size_that_is_not_a_multiple_of_the_devices_is_refused_at_once(
    home: Home, tmp_path: Path
) -> None:
    trial = make_trial(tmp_path / "never-read", batch_size=6)
    with pytest.raises(TrialFailure, match="batch_size 6 is not a multiple of the 4 devices") as raised:
        train(trial, home, tmp_path, 4)
    assert raised.value.hint == "batch_size: 4 or 8, or another --gpus-per-trial"


def save_untied_model(home: Home, folder: Path) -> str:
    """The tiny model with untied embeddings: its output layer is then sharded separately."""
    tiny = tiny_model(home.models)
    config = AutoConfig.from_pretrained(tiny, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(tiny, config=config)
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("tied", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.slow  # two processes are tested above
def test_sharded_weights_give_the_numbers_of_whole_ones_and_continue_in_one_process(
    home: Home, rows: Path, tmp_path: Path, tied: bool
) -> None:
    # Evaluated after each step: a forward without a backward leaves some of the weights whole.
    more = {"full_finetune": True, "max_steps": 12, "eval_steps": 1, "warmup_ratio": 0}
    if not tied:
        more["model"] = save_untied_model(home, tmp_path / "untied")
    trial = make_trial(rows, learning_rate=1e-4, **more)
    _, alone = train(trial, home, tmp_path / "1", 1)
    result, both = train(trial, home, tmp_path / "2", 2, stop_after=2)
    assert result.stopped
    assert 2 <= result.steps < 12
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "2" / "model")
    checkpoint = safetensors.torch.load_file(tmp_path / "2" / "checkpoint" / "last.safetensors")
    for name, parameter in saved.named_parameters():
        assert torch.equal(parameter, checkpoint[f"weights/{name}"]), name
    result, after = train(trial, home, tmp_path / "2", 1)
    assert after.planned == [(12, len(both.rows))]
    both.rows.update(after.rows)
    # AdamW takes full steps even along gradients that are mostly rounding error.
    expect_same(both, alone, 1e-3)
    for step, row in alone.rows.items():
        assert both.rows[step]["loss"] == pytest.approx(row["loss"], rel=1e-5)
    assert not result.stopped
