"""`kto-sweep cache` on real files, in this process and in a fresh one."""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from kto_sweep.cli import run
from kto_sweep.data.load import load_tokens
from kto_sweep.models.tokenizer import load_tokenizer
from kto_sweep.train.reference_store import ReferenceStore

DAY = 86400.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KTO_SWEEP_HOME", str(tmp_path))
    return tmp_path / "cache" / "reference"


def keep(folder: Path, model: str, rows: int, days_ago: float) -> None:
    about = {"model": model, "fingerprint": "ab12cd34ef", "quantization": "4bit", "dtype": "bfloat16"}
    with ReferenceStore(folder, f"{model.replace('/', '-')}-key", about, print) as store:
        store.touch(time.time() - days_ago * DAY)
        store.put({at.to_bytes(4, "big"): (-1.0, -2.0) for at in range(rows)})


def test_an_empty_cache_prints_its_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache"]) == 0
    assert capsys.readouterr().out == f"Nothing in {folder}\n"
    assert run(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "folder": str(folder),
        "bytes": 0,
        "entries": [],
        "tokens": [],
    }


def test_the_table_has_a_line_per_base_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(folder, "Qwen/Qwen2.5-7B", 1234, days_ago=40)
    keep(folder, "[bold]tiny", 3, days_ago=0)
    (folder / "old.1.damaged").write_bytes(b"x" * 3000)
    assert run(["cache"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines() if "bfloat16" in line]
    assert [line[:5] for line in lines] == [
        ["[bold]tiny", "ab12cd34", "4bit", "bfloat16", "3"],
        ["Qwen/Qwen2.5-7B", "ab12cd34", "4bit", "bfloat16", "1,234"],
    ]
    assert "damaged: old.1.damaged" in out
    assert "Next: kto-sweep cache --older-than 30d --prune" in out


def test_json_matches_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(folder, "tiny", 3, days_ago=0)
    assert run(["cache", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    (entry,) = output["entries"]
    assert entry["model"] == "tiny"
    assert (entry["rows"], entry["damaged"], entry["file"]) == (3, False, "tiny-key.sqlite")
    assert entry["bytes"] == output["bytes"] == (folder / "tiny-key.sqlite").stat().st_size


@pytest.mark.parametrize(
    ("age", "left"), [(["--older-than", "30d"], ["new"]), (["--older-than", "9w"], ["new", "old"]), ([], [])]
)
def test_prune_removes_old_entries(
    folder: Path, capsys: pytest.CaptureFixture[str], age: list[str], left: list[str]
) -> None:
    keep(folder, "old", 5, days_ago=40)
    keep(folder, "new", 5, days_ago=2)
    assert run(["cache", *age]) == 0
    assert len(list(folder.glob("*.sqlite"))) == 2
    assert run(["cache", "--prune", *age]) == 0
    assert sorted(path.stem for path in folder.glob("*.sqlite")) == [f"{name}-key" for name in left]
    out = capsys.readouterr().out
    assert f"Removed {2 - len(left)}, " in out or "Nothing that old" in out


def test_prune_keeps_entries_in_use(folder: Path, tmp_path: Path) -> None:
    keep(folder, "busy", 5, days_ago=0)
    keep(folder, "idle", 5, days_ago=0)
    with ReferenceStore(folder, "busy-key", {}, print):
        command = [sys.executable, "-m", "kto_sweep", "cache", "--prune"]
        people = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        program = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=60)
    assert "Kept 1, in use by running trials." in people.stdout
    assert [entry["removed"] for entry in json.loads(program.stdout)["entries"]] == [False]
    assert [path.name for path in folder.glob("*.sqlite")] == ["busy-key.sqlite"]


@pytest.mark.parametrize("age", ["30", "d", "-3d", "3 months", "1e3d"])
def test_an_invalid_age_says_what_to_type(folder: Path, capsys: pytest.CaptureFixture[str], age: str) -> None:
    assert run(["cache", "--prune", "--older-than", age]) == 2
    assert "use hours, days or weeks: 12h, 30d, 8w" in capsys.readouterr().err


def test_it_loads_neither_torch_nor_wandb(folder: Path) -> None:
    keep(folder, "tiny", 3, days_ago=0)
    code = (
        "import sys; from kto_sweep.cli import run; run(['cache', '--prune']);"
        "heavy = {'torch', 'wandb', 'transformers', 'numpy'} & set(sys.modules);"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_the_tokens_of_a_large_data_set_are_shown_and_removed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kto_sweep.data.tokenise.IN_MEMORY", 20)
    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"q{i}", "completion": "a", "label": True}) for i in range(9)]
    rows.write_text("\n".join(lines))
    load = partial(load_tokens, str(rows), load_tokenizer("tiny"), cache=folder.parent)
    written, again = load(), load()
    assert (again.notes, again.tokens) == (written.notes, written.tokens)
    assert list(again.table) == list(written.table)
    assert run(["cache"]) == 0
    assert capsys.readouterr().out.startswith(f"Tokens of {rows}: 9 rows, ")
    rows.write_text("\n".join([*lines, json.dumps({"prompt": "p", "completion": "a", "label": 0})]))
    assert len(load().table) == 10
    assert run(["cache", "--prune", "--json"]) == 0
    assert [entry["rows"] for entry in json.loads(capsys.readouterr().out)["tokens"]] == [10, 9]
    assert list((folder.parent / "tokens").iterdir()) == []
