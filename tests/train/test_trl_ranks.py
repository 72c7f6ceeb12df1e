"""One trial in several processes: the same numbers as in one, and one end for all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cotrain_cases import Recorder, expect_same

from kto_sweep.home import Home
from kto_sweep.train.course import Request
from kto_sweep.train.result import TrainResult
from kto_sweep.train.session import Session
from kto_sweep.trial import Trial

# PEFT and TRL call what transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")

torch.set_num_threads(1)

ROWS = Path(__file__).parents[2] / "examples" / "support_replies.jsonl"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few, so that a trial comes to a batch that is not full: of one row."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(ROWS.read_text().splitlines(keepends=True)[:30]))
    return path


@pytest.fixture(autouse=True)
def one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


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
    trial: Trial, home: Home, folder: Path, devices: int, stop_after: int | None = None
) -> tuple[TrainResult, Recorder]:
    report = Recorder()
    request = Request(
        "run", trial, folder, report, lambda: max(report.rows, default=0) >= (stop_after or 10**9)
    )
    return Session(home, torch.device("cpu"), devices).train_with_trl(request), report


def test_two_processes_give_the_numbers_of_one(home: Home, rows: Path, tmp_path: Path) -> None:
    trial = make_trial(rows)
    _, alone = train(trial, home, tmp_path / "1", 1)
    result, both = train(trial, home, tmp_path / "2", 2)
    expect_same(both, alone, 1e-5)
    assert result.summary["trial/examples"] == 9 * 4 - 1
    assert "trained on 2 devices" in both.notes[0]
