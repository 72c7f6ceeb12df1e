"""An agent started in a folder without the data or model: no trial starts, and it names the right folder."""

from dataclasses import replace

import pytest
from machine import ROOT, Machine
from short_sweep import SWEEP

from kto_sweep.agent.preflight import require_command, require_sources
from kto_sweep.errors import UsageError
from kto_sweep.search.space import Space
from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep_file.command import read_command


def space(**values: object) -> Space:
    found, _ = parse_space({name: {"values": [value]} for name, value in values.items()})
    assert found is not None
    return found


def test_an_agent_in_the_wrong_folder_starts_no_trial_and_names_the_right_one(fake_machine: Machine) -> None:
    (fake_machine.folder / "own").mkdir()
    text = (ROOT / "examples" / "support_replies.jsonl").read_text()
    (fake_machine.folder / "own" / "rows.jsonl").write_text("".join(text.splitlines(True)[:40]))
    made = fake_machine.create_sweep(SWEEP.replace("examples/support_replies.jsonl", "own/rows.jsonl"))
    elsewhere = replace(fake_machine, directory=fake_machine.folder / "own")
    said = elsewhere.run("agent", made["path"], "--cpu", code=2)
    assert f"own/rows.jsonl: no such data file below {elsewhere.directory}; no trial was started" in said
    assert f"Hint: cd {fake_machine.folder}, then run it again" in said
    status = fake_machine.json("status", made["path"])
    assert (status["failed"], status["missing"]) == (0, 2)


def test_names_that_may_be_on_the_hub_are_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    require_sources(space(dataset="trl-lib/kto-mix-14k", model="Qwen/Qwen2.5-7B"), "")
    require_sources(space(dataset="examples/support_replies.jsonl", model_size="tiny"), "")
    require_sources(space(dataset=["examples/support_replies.jsonl", "org/set:en:test"]), "")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("dataset", "/absent/rows.jsonl", "/absent/rows.jsonl: no such data file on this box"),
        ("dataset", "rows.csv", "rows.csv: no such data file below"),
        ("dataset", ["org/set", "rows.csv"], "rows.csv: no such data file below"),
        ("eval_dataset", "rows.csv", "rows.csv: no such data file below"),
        ("model", "./mine", "./mine: no such model below"),
        ("model", "models/mine.gguf", "models/mine.gguf: no such model below"),
    ],
)
def test_missing_files_are_named(name, value, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as raised:
        require_sources(space(**{name: value}), str(tmp_path / "other"))
    assert words in raised.value.message
    assert raised.value.hint == "copy it here, or start the agent in its folder"


def test_a_sweep_with_some_of_its_models_here_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, _ = parse_space({"model": {"values": ["./absent", "tiny"]}})
    assert found is not None
    require_sources(found, "")


def test_a_model_next_to_the_sweep_file_is_found(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    require_sources(space(model="./mine"), "")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["python", "${program}", "--bta=0.5", "${args}"], "bta is not a parameter of a trial"),
        (["python", "${program}", "--seed=${envvar:SEED_OF_BOX}"], "needs SEED_OF_BOX, which is not set"),
        (["bash", "run.sh", "${args}"], "the sweep's command, bash run.sh ${args}, runs no Python program"),
    ],
)
def test_a_command_that_no_trial_can_be_trained_with_is_refused(command: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        require_command(read_command({"command": command}))
    assert message in caught.value.message
    require_command(read_command({"command": ["python", "${program}", "--beta=0.5", "${args}"]}))
