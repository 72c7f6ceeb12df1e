"""`kto-sweep train` with real workers, a real embedded server and the tiny model."""

import json
import re
from dataclasses import replace

import pytest
from machine import Machine
from safetensors.numpy import load_file
from small_models import save, small_model, small_tokenizer
from train_runs import FLAGS, interrupted, rows, run_folders, train

from kto_sweep.shipped_files import find_file

EXAMPLE = find_file("examples/support_replies.jsonl")

RUN_OF = (
    "(lambda r: [r.name, r.state, r.config['batch_size'], r.sweep is None, {}])(api.run('local/mine/{}'))"
)


@pytest.fixture(scope="module")
def trained(machine: Machine) -> str:
    """The output of a run of 6 steps into the folder `out`."""
    return train(
        machine,
        *("--batch-size", "2", "--gradient-accumulation", "2", "--max-steps", "6", "--samples", "2"),
        *("--wandb-project", "mine", "--output-dir", "out"),
    )


def test_one_run_has_its_table_files_and_a_run_without_a_sweep(machine, trained):
    assert "batch_size 4: 2 x 2 examples" in trained
    assert "Margin" in trained
    assert "6/6" in trained
    assert "360 rows, 176 desirable" in trained
    (folder,) = run_folders(machine)
    out = (machine.folder / "out").resolve()
    assert folder.resolve() == out
    assert f"Trained weights, log, lineage and model card: {out}\n" in trained
    assert len(rows(folder)) == 6
    assert json.loads((folder / "lineage.json").read_text())["result"]["end"] == "finished"
    name, state, batch, alone, samples = machine.api(
        RUN_OF.format("r.summary_metrics['samples']['nrows']", folder.name)
    )
    assert (name, state, batch, alone) == (
        "tiny-lr3e-03-bs4-beta0.1-support_replies", "finished", 4, True,
    )  # fmt: skip
    assert samples == 2


def test_the_model_card_lists_data_parameters_results_and_lineage(machine, trained):
    card = (machine.folder / "out" / "adapter" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "| held out | 36 |" in card
    assert "| `learning_rate` | 0.003 |" in card
    assert "`eval/common_loss` |" in card
    assert "base weights" in card


def test_merged_weights_are_new_and_never_overwritten(machine, trained):
    machine.run("merge", "out", "--output", "merged")
    names = {path.name for path in (machine.folder / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
    merged = load_file(machine.folder / "merged" / "model.safetensors")
    (base_file,) = machine.home.models.rglob("model.safetensors")
    base = load_file(base_file)
    assert base.keys() == merged.keys()
    assert any((base[name] != merged[name]).any() for name in base if "proj" in name)
    assert all((base[name] == merged[name]).all() for name in base if "norm" in name)
    assert "exists already" in machine.run("merge", "out", "--output", "merged", code=2)


def test_chat_answers_a_typed_prompt_twice(machine, trained):
    text = machine.run("chat", "out", "--prompt", "My parcel is late.", "--max-tokens", "12", "--json")
    ((answers),) = json.loads(text)["answers"]
    assert "My parcel is late." in answers["prompt"]
    assert answers["base"]
    assert answers["tuned"]


@pytest.mark.slow
def test_a_resumed_run_logs_the_same_rows(machine):
    (machine.folder / "own.jsonl").write_text(EXAMPLE.read_text())
    steps = ("--max-steps", "12", "--batch-size", "4", "--eval-steps", "6", "--local-file", "own.jsonl")
    (machine.folder / "elsewhere").mkdir()
    elsewhere = replace(machine, directory=machine.folder / "elsewhere")
    output = interrupted(machine, *steps, after=" 3/12")
    cut = run_folders(machine)[0]
    assert f"kto-sweep train --resume-from-checkpoint {cut.name}" in output
    assert 3 <= len(rows(cut)) < 12
    assert "cannot be resumed with beta 0.3 (was 0.1)" in machine.run(
        "train", "--resume-from-checkpoint", cut.name, "--beta", "0.3", code=2
    )
    output = elsewhere.run("train", "--resume-from-checkpoint", "--cpu")  # with its data all the same
    assert f"Resuming run {cut.name}" in output
    text = elsewhere.run("chat", cut.name, "--count", "1", "--max-tokens", "4", "--json")
    assert len(json.loads(text)["answers"]) == 1
    assert "is finished" in machine.run("train", "--resume-from-checkpoint", cut.name, code=2)
    train(machine, *steps)
    whole = run_folders(machine)[0]
    assert whole != cut
    assert rows(cut) == rows(whole)
    state, last = machine.api(
        f"(lambda r: [r.state, r.summary_metrics['_step']])(api.run('local/kto-sweep/{cut.name}'))"
    )
    assert (state, last) == ("finished", 12)


def test_retraining_the_best_trial_of_a_sweep_gives_the_same_curve(fake_machine):
    sweep = fake_machine.create_sweep(
        "method: grid\nparameters:\n  lora_r: {values: [4, 8]}\n  model_size: {value: tiny}\n"
        "  dataset: {value: examples/support_replies.jsonl}\n  learning_rate: {value: 3e-3}\n"
        "  max_steps: {value: 4}\n  max_length: {value: 128}\n"
    )["id"]
    fake_machine.run("agent", sweep, "--cpu")
    best = fake_machine.json("compare", sweep)["trials"][0]["run_id"]
    output = fake_machine.run("train", "--from", sweep, "--cpu")
    assert re.search(rf"; the rest is that of its run .*\b{best}\b", output)
    assert rows(run_folders(fake_machine)[0]) == rows(fake_machine.home.runs / best)


def test_a_dry_run_checks_everything_and_trains_nothing(machine):
    before = len(run_folders(machine))
    output = train(machine, "--dry-run", "--whole-data", "--show", "1")
    assert "360 rows" in output
    assert "Row 1: label " in output
    assert "  prompt      <|" in output
    assert "logged in as local" in output
    assert "GiB" in output
    assert len(run_folders(machine)) == before


def test_a_model_that_cannot_be_trained_is_refused_before_the_run_exists(machine, tmp_path):
    tokenizer = small_tokenizer("<|reply|>")
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|assistant|>", "<|reply|>")
    folder = save(small_model("llama"), tmp_path / "added", tokenizer)
    before = len(run_folders(machine))
    command = ("train", "--model-name", str(folder), *FLAGS[2:])
    for more in ((), ("--dry-run",)):
        output = machine.run(*command, *more, code=2)
        assert "its tokenizer has ids up to 400 (<|reply|>), and it has 400 embeddings" in output
    assert len(run_folders(machine)) == before


def test_a_dry_run_says_that_rows_are_cut_to_the_positions_of_the_model(machine, tmp_path):
    folder = save(small_model("gpt2"), tmp_path / "gpt2")
    output = machine.run("train", "--model-name", str(folder), *FLAGS[2:], "--dry-run")
    assert "Note: max_length: 128 is more than the model can hold: rows are cut to its 64 positions" in output
