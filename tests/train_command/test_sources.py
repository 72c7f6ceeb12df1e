"""Where `kto-sweep train` takes its parameters from: a file, an address, a folder, another server's sweep."""

import json
import signal
from pathlib import Path

import pytest
from train_box import Box, rows

from kto_sweep.local_server.start import ensure_server, stop_server
from kto_sweep.train_command.resume import find_run


@pytest.fixture(scope="module")
def sweep(box: Box) -> tuple[str, str]:
    """The address of a sweep that has ended, and the id of its best run."""
    (box.folder / "sweep.yaml").write_text(
        "method: grid\nparameters:\n  lora_r: {values: [4, 8]}\n  model_size: {value: tiny}\n"
        "  dataset: {value: examples/support_replies.jsonl}\n  learning_rate: {value: 3e-3}\n"
        "  max_steps: {value: 2}\n  max_length: {value: 128}\n"
    )
    made = json.loads(box.run("create", "sweep.yaml", "--json"))
    box.run("agent", made["id"], "--cpu")
    ranked = json.loads(box.run("compare", made["id"], "--json"))["trials"]
    return made["url"], ranked[0]["run_id"]


def told_config(told: str) -> dict[str, str]:
    """The parameters that a dry run tells."""
    pairs = (line.strip().split(": ", 1) for line in told.splitlines() if line.startswith("  "))
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def test_flags_come_before_the_file_and_the_file_before_the_preset(box: Box) -> None:
    (box.folder / "run.yaml").write_text(
        "model_size: tiny\ndataset: examples/support_replies.jsonl\nmax_steps: 2\n"
        "training: {learning_rate: 1e-3, beta: 0.2}\nlora: {r: 4}\n"
    )
    told = told_config(box.run("train", "--config", "run.yaml", "--beta", "0.3", "--cpu", "--dry-run"))
    assert (told["learning_rate"], told["beta"], told["lora_r"]) == ("0.001", "0.3", "4")
    assert (told["max_length"], told["max_steps"]) == ("512", "2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "run.yaml: No such file"),
        ("learning_rate: [1", "not a YAML file"),
        ("- 1\n", "it holds no parameters"),
        ("parameters: {beta: {value: 1}}\n", "is a sweep file"),
        ("lerning_rate: 1e-6\nmodel_size: tiny\ndataset: rows.jsonl\n", "Hint: learning_rate"),
        ("beta: 0.1\n", "no data to train on, and no model to train"),
    ],
)
def test_a_file_that_is_none_is_told_with_a_hint(tmp_path: Path, text: str | None, message: str) -> None:
    box = Box(tmp_path)
    if text is not None:
        (tmp_path / "run.yaml").write_text(text)
    told = box.run("train", "--config", "run.yaml", "--dry-run", code=2)
    assert message in told
    assert "Hint: " in told


def test_the_address_of_a_page_names_its_sweep_or_run(box: Box, sweep: tuple[str, str]) -> None:
    url, best = sweep
    told = box.run("train", "--from", url, "--beta", "0.2", "--cpu", "--dry-run")
    assert f"Parameters from run {best} " in told
    assert told_config(told)["beta"] == "0.2"
    server, _, _ = url.partition("/local/")
    told = box.run(
        "train", "--from", f"{server}/local/kto-sweep/runs/{best}", "--epochs", "2", "--cpu", "--dry-run"
    )
    assert f"Parameters from run {best} of this box" in told
    config = told_config(told)
    assert config["epochs"] == "2.0"
    assert "max_steps" not in config
    assert "is no sweep and no run" in box.run(
        "train", "--from", "local/kto-sweep/nothing1", "--dry-run", code=2
    )


def test_a_sweep_of_the_embedded_server_gives_a_run_on_wandb(
    box: Box, sweep: tuple[str, str], tmp_path: Path
) -> None:
    """The other server stands for W&B: it is named by its address and key."""
    _, best = sweep
    there = Box(tmp_path)
    address = ensure_server(there.home)
    remote = {"WANDB_BASE_URL": address.url, "WANDB_API_KEY": address.key}
    try:
        told = box.run(
            "train", "--from", sweep[0].rpartition("/")[2], "--cpu", "--wandb-run-name", "again", **remote
        )
        assert f"Talking to W&B at {address.url}" in told
        run = box.folders()[0]
        assert rows(run) == rows(box.home.runs / best)
        found = there.python(
            f"(lambda r: [r.name, r.state, r.lastHistoryStep])(api.run('local/kto-sweep/{run.name}'))"
        )
        assert found == ["again", "finished", 2]
    finally:
        stop_server(there.home)


def test_a_killed_run_goes_on_by_its_folder(box: Box) -> None:
    out = "out-killed"
    steps = ("--max-steps", "12", "--batch-size", "4", "--eval-steps", "6")
    box.interrupted(*steps, "--output-dir", out, after=" 7/12", how=signal.SIGKILL)
    told = box.train("--output-dir", out, code=2)
    assert f"go on with its run: --resume-from-checkpoint {out}" in told
    names = (box.folder / out, box.folder / out / "checkpoint")
    assert {find_run(box.home, str(name)) for name in names} == {box.folders()[0]}
    told = box.run("train", "--resume-from-checkpoint", f"{out}/checkpoint", "--cpu")
    assert "Going on with run" in told
    steps_logged = [row["step"] for row in rows(box.folder / out) if "loss" in row]
    assert steps_logged == list(range(1, 13))
    assert "this box has no run 'elsewhere'" in box.run(
        "train", "--resume-from-checkpoint", "elsewhere", code=2
    )


def test_what_wandb_was_told_for_a_folder_counts(tmp_path: Path) -> None:
    """`wandb offline` and `wandb disabled`, or WANDB_MODE."""
    box = Box(tmp_path)
    try:
        (tmp_path / "wandb").mkdir()
        (tmp_path / "wandb" / "settings").write_text("[default]\nmode = offline\n")
        assert "offline, sent later" in box.train("--dry-run")
        assert "logged in as local" in box.train("--dry-run", WANDB_MODE="disabled")
        assert "W&B is disabled here" in box.train("--dry-run", "--wandb", code=2, WANDB_MODE="disabled")
        assert "WANDB_MODE is online, offline or disabled" in box.train("--dry-run", code=2, WANDB_MODE="of")
    finally:
        stop_server(box.home)


def test_a_file_of_a_data_set_is_named_beside_it(tmp_path: Path) -> None:
    box = Box(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("[]\n")
    flags = ("--model-size", "tiny", "--dry-run", "--dataset-file", "rows.jsonl")
    assert "data/rows.jsonl" in box.run("train", *flags, "--dataset-name", "data", code=2)
    told = box.run("train", *flags, "--dataset-name", "some/set", code=2, HF_HUB_OFFLINE="1")
    assert "some/set:rows.jsonl: not a local file, and the hub refused it" in told
