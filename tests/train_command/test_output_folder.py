"""The folder that `--output-dir` names."""

import shutil
from pathlib import Path

import pytest

from kto_sweep.errors import UsageError
from kto_sweep.home import Home
from kto_sweep.train_command.prepare import PreparedRun
from kto_sweep.train_command.resume import find_run
from kto_sweep.train_command.run import Job
from kto_sweep.trial import Trial
from kto_sweep.wandb_client.connection import Target

TRIAL = Trial(model_size="tiny", dataset="rows.jsonl")


def prepared(run_id: str, folder: Path) -> PreparedRun:
    job = Job(run_id, TRIAL, "", "kto-sweep", None)
    return PreparedRun(job, Target("http://here", "http://here", local=True), False, folder)


def test_a_folder_that_was_removed_belongs_to_the_new_run_alone(tmp_path: Path) -> None:
    home, out = Home(tmp_path / "home"), tmp_path / "out"
    prepared("first", out).make_folder(home)
    (out / "trial.json").write_text("{}")
    assert find_run(home, str(out)) == home.runs / "first"
    with pytest.raises(UsageError, match="is not empty"):
        prepared("second", out).folder()
    shutil.rmtree(out)
    prepared("second", out).make_folder(home)
    (out / "trial.json").write_text("{}")
    assert [link.name for link in home.runs.iterdir()] == ["second"]
    assert find_run(home, str(out)) == home.runs / "second"


def test_a_folder_that_cannot_be_created_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Not a directory"):
        prepared("first", tmp_path / "file" / "out").make_folder(Home(tmp_path / "home"))
