"""Sources of parameters for `kto-sweep train`: a file, a URL, a folder, another server's sweep."""

import re
import signal
from pathlib import Path

import pytest
from fake_worker import CLI
from machine import ROOT, Machine
from train_runs import SLOW_STEP_9, interrupted, rows, run_folders, train

from kto_sweep.train_command.resume import find_run


@pytest.fixture(scope="module")
def machine(fake_machine: Machine) -> Machine:
    return fake_machine


@pytest.fixture(scope="module")
def sweep(machine: Machine) -> tuple[str, str]:
    """The URL of an ended sweep, and the id of its best run."""
    made = machine.create_sweep(
        "method: grid\nparameters:\n  lora_r: {values: [4, 8]}\n  model_size: {value: tiny}\n"
        "  dataset: {value: examples/support_replies.jsonl}\n  learning_rate: {value: 3e-3}\n"
        "  max_steps: {value: 2}\n  max_length: {value: 128}\n"
    )
    machine.run("agent", made["id"], "--cpu")
    ranked = machine.json("compare", made["id"])["trials"]
    return made["url"], ranked[0]["run_id"]


def printed_config(output: str) -> dict[str, str]:
    """The parameters that a dry run prints."""
    pairs = (line.strip().split(": ", 1) for line in output.splitlines() if line.startswith("  "))
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def test_flags_come_before_the_file_and_the_file_before_the_preset(machine: Machine) -> None:
    (machine.folder / "run.yaml").write_text(
        "model_size: tiny\ndataset: examples/support_replies.jsonl\nmax_steps: 2\n"
        "training: {learning_rate: 1e-3, beta: 0.2}\nlora: {r: 4}\n"
    )
    output = printed_config(
        machine.run("train", "--config", "run.yaml", "--beta", "0.3", "--cpu", "--dry-run")
    )
    assert (output["learning_rate"], output["beta"], output["lora_r"]) == ("0.001", "0.3", "4")
    assert (output["max_length"], output["max_steps"]) == ("512", "2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "run.yaml: No such file"),
        ("learning_rate: [1", "not YAML"),
        ("a: " + "[" * 2000, "run.yaml:1"),
        ("seed: " + "9" * 5000, "run.yaml:1"),
        ("- 1\n", "no parameters"),
        ("parameters: {beta: {value: 1}}\n", "is a sweep file"),
        ("lerning_rate: 1e-6\nmodel_size: tiny\ndataset: rows.jsonl\n", "Hint: learning_rate"),
        ("beta: 0.1\n", "no data to train on, and no model to train"),
    ],
)
def test_an_invalid_file_is_rejected_with_a_hint(tmp_path: Path, text: str | None, message: str) -> None:
    machine = Machine(tmp_path)
    if text is not None:
        (tmp_path / "run.yaml").write_text(text)
    output = machine.run("train", "--config", "run.yaml", "--dry-run", code=2)
    assert message in output
    assert "Hint: " in output


def test_the_url_of_a_page_names_its_sweep_or_run(machine: Machine, sweep: tuple[str, str]) -> None:
    url, best = sweep
    output = machine.run("train", "--from", url, "--beta", "0.2", "--cpu", "--dry-run")
    assert "Parameters from the best configuration of sweep" in output
    assert re.search(rf"; the rest is that of its run .*\b{best}\b", output)
    assert printed_config(output)["beta"] == "0.2"
    server, _, _ = url.partition("/local/")
    output = machine.run(
        "train", "--from", f"{server}/local/kto-sweep/runs/{best}", "--epochs", "2", "--cpu", "--dry-run"
    )
    assert f"Parameters from run {best} on this box" in output
    config = printed_config(output)
    assert config["epochs"] == "2.0"
    assert "max_steps" not in config
    assert "has no sweep or run" in machine.run(
        "train", "--from", "local/kto-sweep/nothing1", "--dry-run", code=2
    )


def test_a_sweep_of_the_embedded_server_gives_a_run_on_wandb(
    machine: Machine, sweep: tuple[str, str], tmp_path: Path
) -> None:
    """The other server, given by its URL and key, stands for W&B."""
    _, best = sweep
    there = Machine(tmp_path, cli=CLI)
    remote = there.server_environment()
    try:
        output = machine.run(
            "train", "--from", sweep[0].rpartition("/")[2], "--cpu", "--wandb-run-name", "again", **remote
        )
        assert f"Talking to the kto-sweep server at {there.address.url}" in output
        run = run_folders(machine)[0]
        assert rows(run) == rows(machine.home.runs / best)
        logged = there.api(
            f"(lambda r: [r.name, r.state, r.lastHistoryStep])(api.run('local/kto-sweep/{run.name}'))"
        )
        assert logged == ["again", "finished", 2]
    finally:
        there.close()


def test_a_killed_run_is_resumed_by_its_folder(machine: Machine) -> None:
    out = "out-killed"
    steps = ("--max-steps", "12", "--batch-size", "4", "--eval-steps", "6")
    machine.script_training(SLOW_STEP_9)
    interrupted(machine, *steps, "--output-dir", out, after=" 7/12", how=signal.SIGKILL)
    output = train(machine, "--output-dir", out, code=2)
    assert f"resume its run: --resume-from-checkpoint {out}" in output
    names = (machine.folder / out, machine.folder / out / "checkpoint")
    assert {find_run(machine.home, str(name)) for name in names} == {run_folders(machine)[0]}
    output = machine.run("train", "--resume-from-checkpoint", f"{out}/checkpoint", "--cpu")
    assert "Resuming run" in output
    steps_logged = [row["step"] for row in rows(machine.folder / out) if "loss" in row]
    assert steps_logged == list(range(1, 13))
    assert "this box has no run 'elsewhere'" in machine.run(
        "train", "--resume-from-checkpoint", "elsewhere", code=2
    )


def test_wandbs_mode_of_a_folder_is_respected(tmp_path: Path) -> None:
    """`wandb offline` and `wandb disabled`, or WANDB_MODE."""
    machine = Machine(tmp_path)
    try:
        (tmp_path / "wandb").mkdir()
        (tmp_path / "wandb" / "settings").write_text("[default]\nmode = offline\n")
        assert "offline, to be synced later" in train(machine, "--dry-run")
        assert "logged in as local" in train(machine, "--dry-run", WANDB_MODE="disabled")
        assert "W&B is disabled here" in train(machine, "--dry-run", "--wandb", code=2, WANDB_MODE="disabled")
        assert "WANDB_MODE is online, offline or disabled" in train(
            machine, "--dry-run", code=2, WANDB_MODE="of"
        )
    finally:
        machine.close()


def test_a_file_of_a_dataset_can_be_selected(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("[]\n")
    flags = ("--model-size", "tiny", "--dry-run", "--dataset-file", "rows.jsonl")
    assert "data/rows.jsonl" in machine.run("train", *flags, "--dataset-name", "data", code=2)
    output = machine.run("train", *flags, "--dataset-name", "some/set", code=2, HF_HUB_OFFLINE="1")
    assert "some/set:rows.jsonl: not a local file, and loading it from the hub failed" in output


def test_several_files_are_trained_on(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    rows = (ROOT / "examples" / "support_replies.jsonl").read_text().splitlines(keepends=True)
    for name, part in {"a": rows[:100], "b": rows[100:200], "c": rows[200:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(part))
    try:
        flags = ("--dataset", "a.jsonl", "--local-file", "b.jsonl", "--eval-dataset", "c.jsonl")
        output = machine.run("train", "--local", "--model-size", "tiny", "--dry-run", "--cpu", *flags)
        assert "data      a.jsonl, b.jsonl: 200 rows" in output
        assert printed_config(output)["dataset"] == "['a.jsonl', 'b.jsonl']"
        assert printed_config(output)["eval_dataset"] == "c.jsonl"
        assert "run tiny-lr5e-06-bs8-beta0.1-a-and-1" in output
    finally:
        machine.close()
