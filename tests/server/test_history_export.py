"""The history of ended runs as Parquet files."""

import json
import math
from typing import Any

import httpx
import pyarrow.parquet as pq
from machine import Machine
from sdk_scripts import graphql, run_script
from server_harness import ServerHarness

from kto_sweep.server import history_columns, history_export
from kto_sweep.server.store import runs

PARQUET = "parquetHistory(liveKeys: $keys) { parquetUrls liveData }"


def parquet_history(harness: ServerHarness, name: str = "r") -> tuple[int, list[int]]:
    """How many files the server offers, and the steps that it has besides."""
    query = f"query($name: String!, $keys: [String!]!) {{ project {{ run(name: $name) {{ {PARQUET} }} }} }}"
    shown = harness.query(query, name=name, keys=["_step"])["project"]["run"]["parquetHistory"]
    return len(shown["parquetUrls"]), [row["_step"] for row in shown["liveData"]]


def end(harness: ServerHarness, name: str = "r") -> None:
    harness.stream(name, complete=True)
    harness.clock.time += 60


def exported_rows(harness: ServerHarness) -> list[dict[str, Any]]:
    """The rows of all files of run `r`."""
    run = runs.find_by_path(harness.server.database.reader(), "local", "uncategorized", "r")
    assert run is not None
    parts = history_export.exported(harness.server, run)
    assert parts is not None
    return [
        row
        for part in parts
        for row in pq.read_table(history_export.path_of(harness.server, part)).to_pylist()
    ]


def test_each_column_has_one_type_and_nested_keys_are_dotted(harness: ServerHarness) -> None:
    harness.start_run("r")
    image = {"_type": "image-file", "size": 3}
    harness.log(
        "r",
        0,
        {
            "whole": 1,
            "number": 1,
            "flag": True,
            "text": "a",
            "mixed": 1,
            "list": [1, 2.5],
            "o": {"p": {"q": 1}},
        },
        {"whole": None, "number": 0.5, "mixed": "b", "image": image, "o": {"p": {"q": 2}, "e": {}}},
        {"mixed": [None], "number": math.nan, "text": "\ud800", "huge": 10**400, "wide": 2**63},
    )
    end(harness)
    first, second, third = exported_rows(harness)
    missing = dict.fromkeys(first)
    assert first == missing | {
        "_step": 0, "whole": 1, "number": 1.0, "flag": True, "text": "a", "mixed": "1",
        "list": [1.0, 2.5], "o.p.q": 1,
    }  # fmt: skip
    assert second == missing | {
        "_step": 1, "number": 0.5, "mixed": "b", "image": json.dumps(image), "o.p.q": 2, "o.e": "{}",
    }  # fmt: skip
    assert math.isnan(third.pop("number"))
    del missing["number"]
    assert third == missing | {
        "_step": 2, "mixed": "[null]", "text": "?", "huge": math.inf, "wide": 2.0**63,
    }  # fmt: skip


def test_rows_are_in_the_order_of_their_steps(harness: ServerHarness) -> None:
    harness.start_run("r")
    texts = [json.dumps({"_step": step, "n": n}) for n, step in enumerate([5, 0, 0, 3])]
    harness.stream("r", files={"wandb-history.jsonl": {"offset": 0, "content": [*texts, "not json"]}})
    end(harness)
    assert [(row["_step"], row["n"]) for row in exported_rows(harness)] == [(0, 1), (0, 2), (3, 3), (5, 0)]


def test_a_large_history_is_written_in_several_row_groups(harness: ServerHarness) -> None:
    harness.start_run("r")
    half = history_columns.GROUP_BYTES // 2 + 1
    harness.log("r", 0, *[{"text": str(row) * half} for row in range(3)])
    end(harness)
    assert [row["text"][0] for row in exported_rows(harness)] == ["0", "1", "2"]
    file = pq.ParquetFile(harness.server.files / "1" / "history-0.parquet")
    assert file.metadata.num_row_groups == 2


def test_only_an_ended_run_is_exported_and_files_never_change(harness: ServerHarness) -> None:
    opaque = harness.start_run("r")["bucket"]["id"]
    assert parquet_history(harness) == (0, [])
    harness.log("r", 0, {"x": 0}, {"x": 1})
    harness.clock.time += 60
    assert parquet_history(harness) == (0, [0, 1]), "running"
    harness.stream("r", complete=True)
    assert parquet_history(harness) == (0, [0, 1]), "its last rows may be on their way"
    harness.clock.time += 60
    assert parquet_history(harness) == (1, [])
    file = harness.server.files / "1" / "history-0.parquet"
    before = file.stat()
    assert parquet_history(harness) == (1, [])
    harness.start_run("r", id=opaque)
    harness.log("r", 2, {"y": 2})
    assert parquet_history(harness) == (0, [0, 1, 2]), "running again"
    end(harness)
    assert parquet_history(harness) == (2, [])
    assert file.stat() == before
    assert [row["_step"] for row in exported_rows(harness)] == [0, 1, 2]


def test_a_history_that_changed_after_its_export_is_read_from_the_server(harness: ServerHarness) -> None:
    """wandb would read the file that it has in its cache."""
    harness.start_run("r")
    harness.log("r", 0, {"x": 0}, {"x": 1})
    end(harness)
    assert parquet_history(harness) == (1, [])
    harness.start_run("r")
    harness.log("r", 2, {"x": 5})
    end(harness)
    assert parquet_history(harness)[0] == 0
    again = harness.start_run("deleted")["bucket"]["id"]
    for _ in range(2):
        harness.log("deleted", 0, {"x": 0})
        end(harness, "deleted")
        files, live = parquet_history(harness, "deleted")
        harness.mutate("deleteRun", "DeleteRunInput", "success", id=again)
        assert not (harness.server.files / "2" / "history-0.parquet").exists()
        again = harness.start_run("deleted")["bucket"]["id"]
    assert (files, live) == (0, [0])


def test_a_history_with_too_many_keys_stays_on_the_server(harness: ServerHarness) -> None:
    harness.start_run("r")
    harness.log("r", 0, {f"k{key}": key for key in range(history_columns.MAX_COLUMNS + 1)})
    end(harness)
    assert parquet_history(harness) == (0, [0])


def test_the_real_sdk_downloads_and_scans_exported_history(machine: Machine) -> None:
    code = """
with wandb.init(id="exported") as run:
    for x in range(50):
        run.log({"x": x, "nested": {"deep": x / 2}, **({"rare": "r"} if x == 7 else {})})
run = wandb.Api().run("acme/tests/exported")
first = [row["x"] for row in run.scan_history()]
while True:
    try:
        result = run.download_history_exports("exports")
        break
    except wandb.apis.public.IncompleteRunHistoryError:
        time.sleep(0.5)
report([
    first,
    [str(path) for path in result.paths],
    [row["x"] for row in run.scan_history()],
    list(run.scan_history(keys=["x", "nested.deep", "rare"], min_step=7, max_step=9)),
    [row["x"] for row in run.beta_scan_history(page_size=7)],
])
"""
    live, (path,), scanned, selected, beta = run_script(machine, code)
    assert live == scanned == beta == list(range(50))
    assert path == "exports/acme_tests_exported_0.runhistory.parquet"
    table = pq.read_table(machine.folder / path)
    assert table.column("nested.deep").to_pylist() == [x / 2 for x in range(50)]
    assert selected == [
        {"_step": 7, "x": 7, "nested.deep": 3.5, "rare": "r"},
        {"_step": 8, "x": 8, "nested.deep": 4, "rare": None},
    ]
    query = f"""query($keys: [String!]!) {{ project(entityName: "acme", name: "tests") {{
        run(name: "exported") {{ {PARQUET} }} }} }}"""
    (url,) = graphql(machine, query, keys=["_step"])["project"]["run"]["parquetHistory"]["parquetUrls"]
    whole = httpx.get(url).content
    assert whole == (machine.folder / path).read_bytes()
    part = httpx.get(url, headers={"range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"PAR1")
    token = url.split("/")[-2]
    assert httpx.get(url.replace(token, token[:-1])).status_code == 404
