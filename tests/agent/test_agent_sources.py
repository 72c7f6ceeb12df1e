"""An agent that is started where the data or model is not: nothing is begun, and it says where to start."""

import pytest
from agent_box import ROOT, SWEEP, Box

from kto_sweep.agent.sources import require_sources
from kto_sweep.errors import UsageError
from kto_sweep.search.space import Space
from kto_sweep.search.space_parser import parse_space


def space(**values: str) -> Space:
    found, _ = parse_space({name: {"values": [value]} for name, value in values.items()})
    assert found is not None
    return found


def test_an_agent_in_another_folder_begins_no_trial_and_says_where_to_start_it(box: Box) -> None:
    (box.folder / "own").mkdir()
    text = (ROOT / "examples" / "support_replies.jsonl").read_text()
    (box.folder / "own" / "rows.jsonl").write_text("".join(text.splitlines(True)[:40]))
    made = box.create(SWEEP.replace("examples/support_replies.jsonl", "own/rows.jsonl"))
    elsewhere = Box(box.folder / "own")
    environment = {"HOME": str(box.folder), "KTO_SWEEP_HOME": str(box.home.root)}
    agent = elsewhere.popen("agent", made["path"], "--cpu", **environment)
    said, _ = agent.communicate(timeout=120)
    assert agent.returncode == 2, said
    assert f"own/rows.jsonl: no such data file below {elsewhere.folder}; no trial was begun" in said
    assert f"Hint: cd {box.folder}, then type it again" in said
    status = box.json("status", made["path"])
    assert (status["failed"], status["missing"]) == (0, 2)


def test_what_may_be_on_the_hub_is_not_judged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    require_sources(space(dataset="trl-lib/kto-mix-14k", model="Qwen/Qwen2.5-7B"), "")
    require_sources(space(dataset="examples/support_replies.jsonl", model_size="tiny"), "")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("dataset", "/absent/rows.jsonl", "/absent/rows.jsonl: no such data file on this box"),
        ("dataset", "rows.csv", "rows.csv: no such data file below"),
        ("model", "./mine", "./mine: no such model below"),
        ("model", "models/mine.gguf", "models/mine.gguf: no such model below"),
    ],
)
def test_what_is_not_here_is_named(name, value, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as raised:
        require_sources(space(**{name: value}), str(tmp_path / "other"))
    assert words in raised.value.message
    assert raised.value.hint == "copy it here, or start in its folder"


def test_a_sweep_that_has_some_of_its_models_here_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, _ = parse_space({"model": {"values": ["./absent", "tiny"]}})
    assert found is not None
    require_sources(found, "")


def test_a_model_beside_the_sweep_is_there(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    require_sources(space(model="./mine"), "")
