"""Data files named in a sweep file, how sweep files are found, and the shipped sweeps."""

from pathlib import Path

import pytest
import yaml

from kto_sweep.errors import SweepFileError, UsageError
from kto_sweep.search.space_parser import parse_space
from kto_sweep.shipped_files import shipped_names, shipped_root
from kto_sweep.sweep_file.sweep_config import load_sweep_config
from kto_sweep.trial import Trial

HEAD = "method: grid\nparameters:\n  model_size: {value: tiny}\n  dataset: {value: data.jsonl}\n"


def test_data_files_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project" / "sweeps").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "project" / "sweeps" / "s.yaml"
    file.write_text(HEAD, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "project" / "dota.jsonl").touch()
    with pytest.raises(SweepFileError) as caught:
        load_sweep_config(file)
    (problem,) = caught.value.problems
    assert problem.where.endswith("s.yaml:4 parameters.dataset.value")
    assert (problem.what, problem.hint) == ("no data file data.jsonl", "dota.jsonl")

    (tmp_path / "project" / "data.jsonl").touch()
    (notice,) = load_sweep_config(file).notices
    assert notice == f"data.jsonl is not below the current folder: start agents in {tmp_path}/project"
    (tmp_path / "elsewhere" / "data.jsonl").touch()
    assert load_sweep_config(file).notices == ()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("trl-lib/kto-mix-14k", None),
        ("examples/support_replies.jsonl", None),
        ("examples/support_replys.jsonl", "examples/support_replies.jsonl"),
        ("replies", "examples/support_replies.jsonl"),
        ("./folder", None),
        ("./empty", "name a file or folder with rows: .jsonl"),
        ("[examples/support_replies.jsonl, folder]", None),
        ("[folder, rows.csv]", "examples/support_replies.jsonl"),
        ("[folder, folder/rows.csv]", "name it once"),
        ("../up.json", "examples/support_replies.jsonl"),
    ],
)
def test_data_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str | None) -> None:
    here = tmp_path / "here"
    (here / "folder").mkdir(parents=True)
    (here / "empty").mkdir()
    (here / "folder" / "rows.csv").touch()
    monkeypatch.chdir(here)
    file = here / "s.yaml"
    file.write_text(HEAD.replace("data.jsonl", name), encoding="utf-8")
    if hint is None:
        load_sweep_config(file)
        return
    with pytest.raises(SweepFileError) as caught:
        load_sweep_config(file)
    assert caught.value.problems[0].hint.startswith(hint)


def test_a_missing_file_suggests_the_nearest_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr_gird.yaml").touch()
    with pytest.raises(UsageError, match="no such file") as caught:
        load_sweep_config(Path("lr_grd.yaml"))
    assert caught.value.hint == "lr_gird.yaml"
    with pytest.raises(UsageError) as caught:
        load_sweep_config(Path("sweeps/lr_gid.yaml"))
    assert caught.value.hint == "sweeps/lr_grid.yaml"
    with pytest.raises(UsageError) as caught:
        load_sweep_config(Path("zzz"))
    assert "sweeps/demo.yaml" in caught.value.hint
    with pytest.raises(UsageError, match="is a folder"):
        load_sweep_config(tmp_path)


SWEEPS = [name for name in shipped_names() if name.startswith("sweeps/")]


@pytest.mark.parametrize("name", SWEEPS)
def test_shipped_sweeps_load_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = load_sweep_config(Path(name))
    assert (sweep.metric_name, sweep.goal) == ("eval/common_loss", "minimize")
    assert sweep.config["program"] == "agent.py"
    trial = Trial.from_config(
        sweep.space.config({p.path: p.distribution.ppf(0.4) for p in sweep.space.searched})
    )
    assert trial.dataset == "examples/support_replies.jsonl"


@pytest.mark.parametrize("name", SWEEPS)
def test_shipped_sweeps_say_what_they_search_and_cost_and_how_to_start(name: str) -> None:
    text = (shipped_root() / name).read_text(encoding="utf-8")
    head = text[: text.index("method:")]
    for part in ("# Searches:", "# Costs:", "# Start:", "kto-sweep agent", f"wandb sweep {name}"):
        assert part in head
    # The stock tools read the file as it is.
    raw = yaml.safe_load(text)
    assert raw["program"] == "agent.py"
    assert parse_space(raw["parameters"])[1] == []


def test_the_learning_rate_grid_is_that_of_wandbs_example() -> None:
    sweep = load_sweep_config(Path("sweeps/lr_grid.yaml"))
    assert sweep.config["parameters"]["learning_rate"]["values"] == [5e-7, 2.5e-7, 1e-7]
    assert sweep.config["parameters"]["batch_size"]["values"] == [6, 8, 10]
    assert sweep.expected_trials == 9
    assert len(sweep.notices) == 1
