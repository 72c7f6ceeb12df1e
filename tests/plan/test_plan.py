"""Plans of sweeps: what fits, remedies and times; and `create`, which plans first."""

import json
import os
from pathlib import Path

import pytest

from kto_sweep.cli import run
from kto_sweep.errors import UsageError
from kto_sweep.home import Home
from kto_sweep.plan.cells import grid_cells
from kto_sweep.plan.create_check import check_before_create
from kto_sweep.plan.gpus import GPUS, find_gpu, named_gpu, present_gpu
from kto_sweep.plan.planner import Planner
from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep_file.sweep_config import load_sweep_config
from kto_sweep.sweep_file.validate import validate

HERE = Path(__file__).parent
HEAD = """\
method: grid
parameters:
  dataset: {value: examples/support_replies.jsonl}
"""


@pytest.fixture(autouse=True)
def box_without_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU driver, no model files, an empty home and working folder."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("KTO_SWEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


def driver(folder: Path, line: str) -> None:
    """A fake nvidia-smi that lists one GPU."""
    (folder / "bin").mkdir()
    tool = folder / "bin" / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{line}'\n")
    tool.chmod(0o755)


def sweep(folder: Path, text: str) -> Path:
    file = folder / "sweep.yaml"
    file.write_text(HEAD + text)
    return file


def test_the_plan_of_a_grid_of_sizes_in_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "sweeps/model_size_grid.yaml", "--gpu", "rtx3090"]) == 0
    golden = HERE / "plan_rtx3090.txt"
    shown = capsys.readouterr().out
    if os.environ.get("KTO_SWEEP_WRITE_GOLDEN"):
        golden.write_text(shown)
    assert shown == golden.read_text()


def test_cells_that_do_not_fit_are_named_with_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "sweeps/model_size_grid.yaml", "--gpu", "5GB"]) == 1
    shown = capsys.readouterr().out
    assert "Does not fit: model_size=3b; to make it fit: quantization: 4bit" in shown
    assert "Does not fit: model_size=7b; to make it fit: a smaller model" in shown
    assert "model_size=1.5b: fits in one micro-batch up to batch_size" in shown
    assert "4 of 8 trials cannot fit in 4.0 GiB" in shown
    file = "sweeps/model_size_grid.yaml"
    assert shown.endswith(f"Next: change {file} so that all fits, then kto-sweep plan {file} --gpu 5GB\n")


def test_a_model_that_is_published_in_4_bit_is_not_advised_to_be_loaded_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweep(tmp_path, "  model_size: {value: 20b}\n  learning_rate: {values: [1.0e-6, 1.0e-5]}\n")
    assert run(["plan", str(file), "--gpu", "24GB"]) == 1
    shown = capsys.readouterr().out
    assert "to make it fit: a smaller model, or a GPU with more memory" in shown
    assert "2 of 2 trials cannot fit" in shown
    file = sweep(tmp_path, "  model_size: {value: 20b}\n  quantization: {value: 4bit}\n")
    assert run(["validate", str(file)]) == 2
    assert "They cannot be loaded in 4bit." in capsys.readouterr().out


def test_corners_that_do_not_fit_are_counted_as_corners(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "sweeps/bayes.yaml", "--gpu", "2GB"]) == 1
    assert "of the 12 corners of the search space cannot fit" in capsys.readouterr().out


def test_json_holds_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "sweeps/lr_grid.yaml", "--gpu", "h200", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["trials"] == 9
    assert [(cell["parameters"], cell["trials"]) for cell in output["cells"]] == [
        ({"batch_size": size}, 3) for size in (6, 8, 10)
    ]
    assert [cell["steps"] for cell in output["cells"]] == [51, 39, 31]
    assert all(cell["fits"] and cell["least_gib"] < cell["peak_gib"] for cell in output["cells"])
    assert output["makespan"]["seconds"] < output["serial"]["seconds"]
    assert output["serial"]["uncertainty_factor"] == 2.0
    assert not output["exact_tokens"]


def test_without_a_gpu_a_plan_never_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "sweeps/lr_grid.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "no GPU named" in shown
    assert "fits" not in shown
    assert "kto-sweep plan sweeps/lr_grid.yaml --gpu h200" in shown


def test_a_continuous_space_shows_its_corners_and_the_time_of_a_sample() -> None:
    plan = Planner(GPUS["h200"], exact=False).plan(load_sweep_config(Path("sweeps/bayes.yaml")))
    assert {(o.cell.trial.batch_size, o.cell.trial.lora_r) for o in plan.cells} == {
        (batch, rank) for batch in (8, 16, 32) for rank in (8, 16, 32, 64)
    }
    assert {estimate.cell.count for estimate in plan.cells} == {0}
    assert plan.trials == 30
    assert plan.serial is not None
    assert plan.makespan is not None
    assert plan.makespan.seconds <= plan.serial.seconds


def test_trials_together_need_more_memory_and_not_more_time_each(tmp_path: Path) -> None:
    file = sweep(
        tmp_path, "  model_size: {value: 0.5b}\n  learning_rate: {values: [1.0e-6, 2.0e-6, 3.0e-6]}\n"
    )
    plan = Planner(GPUS["h200"], exact=False).plan(load_sweep_config(file))
    (estimate,) = plan.cells
    assert (estimate.cell.count, plan.together) == (3, 3)
    assert estimate.time is not None
    assert plan.serial is not None
    assert plan.makespan is not None
    assert plan.serial.seconds > 3 * estimate.time.seconds
    assert plan.makespan.seconds < plan.serial.seconds


def test_a_full_finetune_needs_many_times_the_memory(tmp_path: Path) -> None:
    file = sweep(tmp_path, "  model_size: {value: 1.5b}\n  full_finetune: {values: [false, true]}\n")
    lora, full = Planner(GPUS["rtx3090"], exact=False).plan(load_sweep_config(file)).cells
    assert (lora.trainer, full.trainer) == ("packed", "trl")
    assert lora.fits
    assert not full.fits
    assert full.remedy.startswith("full_finetune: false")


def test_gpus_by_name_by_size_and_by_the_drivers_name() -> None:
    assert named_gpu("RTX 3090") is GPUS["rtx3090"]
    assert named_gpu("24GB").gib == 24
    assert present_gpu("NVIDIA H200", 139.8).tflops == 989
    assert present_gpu("NVIDIA A100-SXM4-40GB", 39.5).gb_per_s == 1555
    assert present_gpu("NVIDIA GeForce RTX 3090", 24.0).tflops == 71
    assert present_gpu("Tesla V100", 16.0).tflops is None
    with pytest.raises(UsageError) as caught:
        named_gpu("rtx3091")
    assert caught.value.hint == "rtx3090"


def test_the_gpu_of_this_box(tmp_path: Path) -> None:
    assert find_gpu() is None
    driver(tmp_path, "NVIDIA GeForce RTX 3090, 24576, [N/A]")
    gpu = find_gpu()
    assert gpu is not None
    assert (gpu.gib, gpu.gb_per_s) == (24.0, 936)


def test_create_rejects_cells_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    driver(tmp_path, "NVIDIA Small, 6144, [N/A]")
    file = sweep(tmp_path, "  model_size: {values: [0.5b, 8b]}\n  quantization: {value: none}\n")
    assert run(["create", str(file), "--local"]) == 2
    error = capsys.readouterr().err
    assert "model_size=8b needs at least" in error
    assert "NVIDIA Small has 5.0 for tensors" in error
    assert "--force" in error
    assert not (tmp_path / "home").exists()
    said: list[str] = []
    assert (
        check_before_create(file, Home(tmp_path / "home"), force=True, say=said.append).expected_trials == 2
    )
    assert "1 of 2 trials cannot fit" in said[-1]


def test_create_without_a_gpu_only_prints_the_plan(tmp_path: Path) -> None:
    said: list[str] = []
    file = sweep(tmp_path, "  model_size: {value: 14b}\n  quantization: {value: none}\n")
    check_before_create(file, Home(tmp_path / "home"), force=False, say=said.append)
    assert said[-1].startswith("Plan: 1 trial; ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "  model: {value: ./only/on/the/gpu/box}\n",
            "skipped: ./only/on/the/gpu/box: no such model folder",
        ),
        ("  model_size: {value: 3b}\n", "skipped, org/rows-on-the-hub is not on this box"),
    ],
)
def test_create_skips_the_plan_when_data_or_model_are_elsewhere(
    tmp_path: Path, text: str, message: str
) -> None:
    said: list[str] = []
    file = sweep(tmp_path, text)
    if "hub" in message:
        file.write_text(file.read_text().replace("examples/support_replies.jsonl", "org/rows-on-the-hub"))
    assert (
        check_before_create(file, Home(tmp_path / "home"), force=False, say=said.append).expected_trials == 1
    )
    assert message in said[-1]


def test_a_grid_of_a_million_trials_is_warned_about_and_planned_from_its_cells(tmp_path: Path) -> None:
    values = ", ".join(f"{0.01 + number / 1000:g}" for number in range(100))
    text = (
        f"  model_size: {{value: 0.5b}}\n  beta: {{values: [{values}]}}\n  batch_size: {{values: [8, 16]}}\n"
    )
    large = sweep(tmp_path, f"{text}  seed: {{min: 1, max: 5000}}\n")
    validation = validate(large)
    assert [problem.what for problem in validation.warnings if "a grid of" in problem.what] == [
        "a grid of 1,000,000 trials"
    ]
    plan = Planner(named_gpu("h200"), exact=False).plan(validation.checked())
    assert (plan.trials, [estimate.cell.count for estimate in plan.cells]) == (1_000_000, [500_000, 500_000])
    small = Planner(named_gpu("h200"), exact=False).plan(
        load_sweep_config(sweep(tmp_path, f"{text}  seed: {{min: 1, max: 5}}\n"))
    )
    assert plan.makespan is not None
    assert small.makespan is not None
    assert plan.disk_bytes == pytest.approx(1000 * (small.disk_bytes or 0))
    assert plan.makespan.seconds == pytest.approx(1000 * small.makespan.seconds, rel=0.1)


def test_mappings_that_cost_the_same_are_one_cell_with_the_names_in_them() -> None:
    space, problems = parse_space(
        {
            "configuration": {
                "values": [
                    {"batch_size": 4, "beta": 0.1},
                    {"batch_size": 4, "beta": 0.3},
                    {"batch_size": 8, "beta": 0.1},
                ]
            },
            "seed": {"values": [1, 2]},
            "model_size": {"value": "tiny"},
            "dataset": {"value": "rows.jsonl"},
        }
    )
    assert space is not None, problems
    assert [(cell.varied, cell.count) for cell in grid_cells(space)] == [
        ({"configuration.batch_size": 4}, 4),
        ({"configuration.batch_size": 8}, 2),
    ]
