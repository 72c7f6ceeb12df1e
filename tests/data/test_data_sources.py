"""What the names in `dataset` mean: files, folders and patterns; test_hub_data.py has the hub."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from kto_sweep.data.examples import read_examples
from kto_sweep.data.hub_data import HubData, parse_hub_name
from kto_sweep.data.sources import SOURCE_FORMS, find_local, find_parts, join_source, read_rows, require_apart
from kto_sweep.errors import DataError
from kto_sweep.trial import Trial

ROWS = [{"prompt": f"q {i}", "completion": f"a {i}", "label": i % 2 == 0} for i in range(6)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(*names: str) -> None:
    """Write the rows to each file in its format."""
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in ROWS)
        data = datasets.Dataset.from_list(ROWS)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(text.encode()))
        elif name.endswith(".parquet"):
            data.to_parquet(name)
        elif name.endswith(".csv"):
            data.to_csv(name)
        elif name.endswith(".arrow"):
            with pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, data.data.table.schema) as writer:
                writer.write_table(data.data.table)
        elif name.endswith(".json"):
            path.write_text(json.dumps(ROWS))
        else:
            path.write_text(text)


def read(source: Any) -> list[tuple[str, int]]:
    return [(row.file, row.number) for row in read_rows(source)[1]]


def refused(source: Any) -> tuple[str, str]:
    with pytest.raises(DataError) as caught:
        list(read_rows(source)[1])
    return caught.value.message, caught.value.hint


@pytest.mark.parametrize(
    "form", [form for form in SOURCE_FORMS if form.kind != "hub"], ids=lambda form: form.kind
)
def test_every_form_is_read(form: Any) -> None:
    write("rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.arrow", "rows.jsonl.gz")
    write("a.jsonl", "b.parquet", "shards/train-0.parquet", "shards/train-1.parquet")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk("saved")
    files = 2 if form.kind in ("several", "pattern", "folder") else 1
    trial = Trial.from_config({"dataset": form.example, "model_size": "tiny"})
    assert Trial.from_config(json.loads(json.dumps(trial.to_config()))) == trial
    assert [(example.prompt, example.label) for example in read_examples(trial.dataset)[1]] == [
        (row["prompt"], row["label"]) for row in ROWS * files
    ]


def test_several_files_have_their_own_lines_in_the_order_given() -> None:
    write("b.jsonl", "a.csv")
    name, rows = read_rows(["b.jsonl", "a.csv"])
    assert name == "b.jsonl, a.csv"
    assert [(row.file, row.number) for row in rows] == [
        *(("b.jsonl", number) for number in range(1, 7)),
        *(("a.csv", number) for number in range(2, 8)),
    ]


@pytest.mark.parametrize(
    ("source", "file", "by"),
    [
        (["a.jsonl", "a.jsonl"], "a.jsonl", "twice"),
        (["a.jsonl", "./a.jsonl"], "a.jsonl", "by a.jsonl and by ./a.jsonl"),
        (["link.jsonl", "a.jsonl"], "a.jsonl", "by link.jsonl and by a.jsonl"),
        (["shards", "shards/0.jsonl"], "shards/0.jsonl", "by shards and by shards/0.jsonl"),
        (["org/set", "org/set"], "org/set", "twice"),
    ],
)
def test_no_file_is_read_twice(source: list[str], file: str, by: str) -> None:
    write("a.jsonl", "shards/0.jsonl")
    Path("link.jsonl").symlink_to("a.jsonl")
    assert refused(source) == (f"{file} is named {by}", "name it once")


def test_files_of_a_folder_in_the_order_of_their_names() -> None:
    write("shards/b.jsonl", "shards/a.ndjson", "shards/.hidden.jsonl")
    Path("shards/README.md").write_text("rows")
    Path("shards/dataset_info.json").write_text("{}")
    name, rows = read_rows("shards")
    assert name == "shards"
    assert [row.file for row in rows] == ["shards/a.ndjson"] * 6 + ["shards/b.jsonl"] * 6


def test_a_pattern_names_files() -> None:
    write("shards/train-1.jsonl", "shards/train-0.jsonl", "shards/test-0.jsonl")
    assert [file for file, number in read("shards/train-*.jsonl") if number == 1] == [
        "shards/train-0.jsonl",
        "shards/train-1.jsonl",
    ]
    assert refused("shards/dev-*.jsonl")[0] == "shards/dev-*.jsonl: no such data file"


@pytest.mark.parametrize(
    ("files", "message", "hint"),
    [
        (
            ["f/a.jsonl", "f/b.parquet"],
            "f: files of several formats: JSON lines, parquet",
            "name f/a.jsonl, or f/b",
        ),
        (
            ["f/a.jsonl", "f/b.csv", "f/c.csv"],
            "several formats: JSON lines, CSV",
            "name f/a.jsonl, or 'f/*.csv'",
        ),
        (
            ["f/test-0.jsonl", "f/train-0.jsonl", "f/train-1.jsonl"],
            "f: files of several splits: test, train",
            "dataset: 'f/*train*.jsonl', and eval_dataset: f/test-0.jsonl",
        ),
        (
            ["f/rows.jsonl", "f/rows.jsonl.gz"],
            "rows.jsonl and rows.jsonl.gz seem to be the same",
            "remove one",
        ),
        (["f/data/a.jsonl"], "f: has data only in folders in it: data", "name f/data"),
        (
            ["f/a.jsonl", "f/more/a.jsonl"],
            "f: has data files, and so have folders in it: more",
            "name f/a.jsonl, or",
        ),
        (["f/README.md"], "f: a folder without data files (only README.md)", ".jsonl, .ndjson"),
    ],
)
def test_a_folder_that_is_not_one_set_of_rows(files: list[str], message: str, hint: str) -> None:
    write(*files)
    said, mend = refused("f")
    assert message in said
    assert hint in mend


def test_an_empty_folder() -> None:
    Path("f").mkdir()
    assert refused("f")[0] == "f: a folder without data files (it is empty)"


def test_saved_datasets() -> None:
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk("one", num_shards=2)
    assert read("one") == [("one", number) for number in range(1, 7)]
    datasets.DatasetDict({"test": saved, "train": saved.select([1, 3])}).save_to_disk("both")
    assert read("both") == [("both/train", 1), ("both/train", 2)]
    assert len(read("both/test")) == 6
    datasets.DatasetDict({"test": saved, "dev": saved}).save_to_disk("other")
    assert refused("other") == (
        "other: a saved DatasetDict without a split train",
        "name a split: other/dev, other/test",
    )
    Path("one/data-00000-of-00002.arrow").unlink()
    assert "one: not a complete saved dataset" in refused("one")[0]


def test_a_pipe_is_not_a_data_file() -> None:
    os.mkfifo("rows.jsonl")
    assert refused("rows.jsonl")[0] == "rows.jsonl: not a regular file"


@pytest.mark.parametrize(
    ("dataset", "held_out", "shared"),
    [
        ("a.jsonl", "b.jsonl", None),
        ("a.jsonl", ["b.jsonl", "./a.jsonl"], "a.jsonl"),
        ("shards", "shards/1.jsonl", "shards/1.jsonl"),
        ("shards/0.jsonl", "shards", "shards/0.jsonl"),
        ("org/set", "org/set::test", None),
        ("org/set", "org/set::train", "org/set::train"),
    ],
)
def test_what_is_held_out_is_not_trained_on(dataset: Any, held_out: Any, shared: str | None) -> None:
    write("a.jsonl", "b.jsonl", "shards/0.jsonl", "shards/1.jsonl")
    if shared is None:
        require_apart(dataset, held_out)
        return
    with pytest.raises(DataError, match=f"^{shared} is both in dataset and in eval_dataset"):
        require_apart(dataset, held_out)


@pytest.mark.parametrize(
    ("source", "why"), [("x" * 5000, "more than 255 bytes"), ("~no-such-user/rows.jsonl", "no such user")]
)
def test_what_cannot_be_a_path(source: str, why: str) -> None:
    assert why in refused(source)[0]


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("file:///data/a.jsonl", "name it /data/a.jsonl"),
        ("https://huggingface.co/datasets/org/set", "name it org/set"),
        (
            "https://huggingface.co/datasets/org/set/blob/main/data/a.jsonl?x=1",
            "name it org/set:data/a.jsonl",
        ),
        ("hf://datasets/org/set/a.parquet", "name it org/set:a.parquet"),
        ("https://example.org/a.jsonl", "curl -LO https://example.org/a.jsonl, then name the file"),
        ("s3://bucket/a.jsonl", "copy it here, then name the file"),
        ("org/set[test]", "OWNER/NAME::SPLIT"),
        ("org/set:a:b:c", "OWNER/NAME:CONFIG:SPLIT"),
        ("a.josnl", "did you mean a.jsonl?"),
    ],
)
def test_names_that_are_not_a_source(source: str, hint: str) -> None:
    write("a.jsonl")
    message, mend = refused(source)
    assert message == f"{source}: no such data file"
    assert hint in mend


@pytest.mark.parametrize(
    ("source", "meaning"),
    [
        ("org/set", ("org/set", None, "train", None)),
        ("org/set:en", ("org/set", "en", "train", None)),
        ("org/set:20220301.en:test", ("org/set", "20220301.en", "test", None)),
        ("org/set::test", ("org/set", None, "test", None)),
        ("org/set::train[:100]", ("org/set", None, "train[:100]", None)),
        ("org/set:rows.jsonl.gz", ("org/set", None, "train", "rows.jsonl.gz")),
        ("org/set:data/*", ("org/set", None, "train", "data/*")),
        ("data/rows.jsonl", None),
        ("data/rows.csv.zst", None),
        ("./data/rows", None),
        ("/data/rows", None),
        ("rows", None),
        ("a/b/c", None),
    ],
)
def test_names_on_the_hub(source: str, meaning: tuple[object, ...] | None) -> None:
    expected = None if meaning is None else HubData(source, *meaning)  # type: ignore[arg-type]
    assert parse_hub_name(source) == expected


def test_a_local_folder_comes_before_the_hub() -> None:
    assert find_parts("org/set") == [HubData("org/set", "org/set")]
    write("org/set/a.jsonl")
    assert len(read("org/set")) == len(read("org/set:a.jsonl")) == 6
    assert find_local("org/set") == [Path("org/set")]
    assert join_source("org/set", "a.jsonl") == "org/set/a.jsonl"
    assert join_source("org/other", "a.jsonl") == "org/other:a.jsonl"
    assert join_source(None, "a.jsonl") == "a.jsonl"
