"""Weights as artifacts of their runs, as WANDB_LOG_MODEL asks for."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from kto_sweep.agent.model_upload import LogModel, read_log_model

SWEEP = """
method: grid
parameters:
  learning_rate: {values: [3.0e-3]}
  model_size: {value: tiny}
  dataset: {value: examples/support_replies.jsonl}
  max_length: {value: 128}
  batch_size: {value: 4}
  max_steps: {value: 4}
  eval_steps: {value: 1}
"""
FLAGS = ("--model-size", "tiny", "--local-file", "examples/support_replies.jsonl")


@pytest.mark.parametrize(
    ("value", "means"),
    [
        ("", "false"),
        ("false", "false"),
        ("0", "false"),
        ("end", "end"),
        ("True", "end"),
        ("CHECKPOINT", "checkpoint"),
    ],
)
def test_the_values_of_hugging_faces_trainers_are_known(value, means):
    assert read_log_model({"WANDB_LOG_MODEL": value}) == LogModel(means)
    assert read_log_model({}) is LogModel.OFF


def test_other_values_are_refused_before_training(fake_machine):
    sweep = fake_machine.create_sweep(SWEEP)["id"]
    for command in ("agent", sweep), ("train", *FLAGS, "--max-steps", "2"):
        said = fake_machine.run(*command, "--cpu", code=2, WANDB_LOG_MODEL="always")
        assert "Error: WANDB_LOG_MODEL=always: unknown value" in said
        assert "Hint: WANDB_LOG_MODEL=end, checkpoint or false" in said
    assert not fake_machine.home.runs.exists()


def test_checkpoints_and_final_adapters_are_versions_that_another_box_can_use(machine):
    """A checkpoint is due after each evaluation, so the second one comes before the end of training."""
    made = machine.create_sweep(SWEEP)
    machine.run("agent", made["id"], "--cpu", WANDB_LOG_MODEL="checkpoint")
    (run,) = machine.home.runs.iterdir()
    folder = str(machine.folder)
    logged = machine.api(
        f"[[a.name, a.type, a.metadata, sorted(a.manifest.entries), a.download({folder!r} + '/' + a.name)]"
        f" for a in api.run('{made['path'].rpartition('/')[0]}/{run.name}').logged_artifacts()]"
    )
    adapter, checkpoint = logged[-1], logged[0]
    assert adapter[:3] == [f"adapter-{run.name}:v0", "model", {"step": 4}]
    for name in adapter[3]:
        assert Path(adapter[4], name).read_bytes() == (run / "adapter" / name).read_bytes()
    assert "adapter_model.safetensors" in adapter[3]
    assert checkpoint[:2] == [f"checkpoint-{run.name}:v0", "model"]
    assert checkpoint[3] == ["last.safetensors", "rows.jsonl"]
    with safe_open(Path(checkpoint[4], "last.safetensors"), framework="np") as file:
        assert checkpoint[2] == {"step": json.loads(file.metadata()["about"])["step"]}
    assert checkpoint[2]["step"] in (1, 2, 3)
    rows = Path(checkpoint[4], "rows.jsonl").read_text().splitlines()
    assert len(rows) >= checkpoint[2]["step"]  # a trial on another box can continue from it
