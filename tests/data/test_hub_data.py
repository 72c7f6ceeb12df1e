"""Datasets on the hub: their configurations and splits, read from a local copy; and files, from a stub."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kto_sweep.data.sources import read_rows
from kto_sweep.errors import DataError

CARD = """---
configs:
- config_name: en
  data_files: [{split: train, path: en/a.jsonl}, {split: test, path: en/b.jsonl}]
- config_name: de
  data_files: [{split: train, path: de/*.jsonl}]
dataset_info:
- config_name: en
  features:
  - {name: prompt, dtype: string}
  - {name: label, dtype: {class_label: {names: {'0': bad, '1': good}}}}
- config_name: de
  features: [{name: prompt, dtype: string}, {name: label, dtype: int64}]
---
"""
FILES = {"data/b.jsonl": '{"prompt": "b"}\n\n{"prompt": "c"}\n', "data/a.jsonl": '{"prompt": "a"}\n'}


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dataset org/set, in the current folder, where the `datasets` library looks before the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name, rows in {"en/a": 2, "en/b": 3, "de/c": 1}.items():
        path = tmp_path / "org" / "set" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"prompt": name, "label": 1}) + "\n" for _ in range(rows)))
    (tmp_path / "org" / "set" / "README.md").write_text(CARD)


@pytest.mark.parametrize(
    ("source", "prompts", "label"),
    [
        ("org/set:en", ["en/a"] * 2, "good"),
        ("org/set:en:test", ["en/b"] * 3, "good"),
        ("org/set:en:train[:1]", ["en/a"], "good"),
        ("org/set:de", ["de/c"], 1),
    ],
)
def test_configurations_and_splits(dataset: None, source: str, prompts: list[str], label: object) -> None:
    name, rows = read_rows(source)
    read = list(rows)
    assert [row.value for row in read] == [{"prompt": prompt, "label": label} for prompt in prompts]
    assert {row.file for row in read} == {name} == {source}
    assert [row.number for row in read] == list(range(1, len(prompts) + 1))


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("org/set::train", "name a configuration: org/set:en, org/set:de"),
        ("org/set:fr", "name a configuration: org/set:en, org/set:de"),
        ("org/set:test", "test is a split: "),
        ("org/set:en:dev", "name a split: org/set:en:train, org/set:en:test"),
    ],
)
def test_an_unknown_configuration_or_split_lists_the_known_ones(
    dataset: None, source: str, hint: str
) -> None:
    with pytest.raises(DataError, match=f"^{source}: ") as caught:
        list(read_rows(source)[1])
    assert hint in caught.value.hint


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stub of the hub with the dataset org/files."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.partition("/resolve/main/")[2]
            body = FILES.get(name, "").encode()
            if self.path.startswith("/api/datasets/org/files/tree/"):
                tree = [
                    {"type": "file", "path": file, "size": 1, "oid": "0"} for file in [*FILES, "README.md"]
                ]
                body = json.dumps(tree).encode()
            self.send_response(200 if body else 404)
            if not body:
                self.send_header(
                    "X-Error-Code", "EntryNotFound" if "org/files" in self.path else "RepoNotFound"
                )
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{name.replace("/", "-")}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    yield
    server.shutdown()
    server.server_close()


def test_files_of_a_dataset_keep_their_lines(hub: None) -> None:
    rows = list(read_rows("org/files:data/b.jsonl")[1])
    assert [(row.file, row.number) for row in rows] == [
        ("org/files:data/b.jsonl", 1),
        ("org/files:data/b.jsonl", 3),
    ]
    assert [row.value for row in read_rows("org/files:data/*.jsonl")[1]] == [
        {"prompt": "a"},
        {"prompt": "b"},
        {"prompt": "c"},
    ]


def test_a_missing_file_of_a_dataset_names_the_nearest(hub: None) -> None:
    with pytest.raises(DataError) as caught:
        list(read_rows("org/files:data/bb.jsonl")[1])
    assert caught.value.hint == "name one of its files: org/files:data/b.jsonl"
    with pytest.raises(DataError, match="the dataset has no such files"):
        list(read_rows("org/files:test/*.jsonl")[1])


def test_without_a_network(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="loading it from the hub failed") as caught:
        list(read_rows("org/files:data/b.jsonl")[1])
    assert "HF_TOKEN" in caught.value.hint
