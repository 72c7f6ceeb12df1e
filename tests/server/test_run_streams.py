"""file_stream: repeated, rewritten and hostile messages; restarted runs."""

import json
from typing import Any

import pytest
from server_harness import ServerHarness

from kto_sweep.server import file_stream
from kto_sweep.server.errors import NotFoundError, RequestError


def history(harness: ServerHarness, name: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in harness.run(name, "history(minStep: 0, maxStep: 1000000)")["history"]
    ]


def test_message_sent_twice_changes_nothing(harness: ServerHarness) -> None:
    harness.start_run("r")
    for _ in range(2):
        harness.log("r", 0, {"x": 1}, {"x": 2})
    harness.log("r", 1, {"x": 2}, {"x": 3})
    assert [row["x"] for row in history(harness, "r")] == [1, 2, 3]
    assert harness.run("r", "historyLineCount") == {"historyLineCount": 3}


def test_metric_of_a_message_sent_twice_is_counted_once(harness: ServerHarness) -> None:
    config = {"method": "random", "metric": {"name": "x"}, "parameters": {"lr": {"value": 1}}}
    sweep = harness.sweep(config)
    harness.start_run("r", sweep=sweep)
    for _ in range(3):
        harness.log("r", 0, {"x": 5.0}, {"y": 0}, {"x": 4.0})
    with harness.server.database.reader() as connection:
        rows = connection.execute("SELECT ordinal, value FROM metric_value ORDER BY ordinal").fetchall()
    assert [tuple(row) for row in rows] == [(1, 5.0), (2, 4.0)]
    assert harness.sweep_field(sweep, "bestLoss") == 4.0


def test_console_lines_are_rewritten_in_place(harness: ServerHarness) -> None:
    harness.start_run("r")
    stamp = "2026-01-01T00:00:00.000000"
    first = [f"{stamp} 10%", f"ERROR {stamp} oops", "no stamp"]
    harness.stream("r", files={"output.log": {"offset": 0, "content": first}})
    harness.stream("r", files={"output.log": {"offset": 0, "content": [f"{stamp} 100%"]}})
    page = "logLines(first: 2) { edges { node { line level } } pageInfo { endCursor } }"
    shown = harness.run("r", f"logLineCount {page}")
    assert shown["logLineCount"] == 3
    lines = [edge["node"] for edge in shown["logLines"]["edges"]]
    assert [(line["line"], line["level"]) for line in lines] == [("100%", None), ("oops", "error")]
    after = shown["logLines"]["pageInfo"]["endCursor"]
    rest = harness.run("r", f'logLines(first: 2, after: "{after}") {{ edges {{ node {{ line }} }} }}')
    assert [edge["node"]["line"] for edge in rest["logLines"]["edges"]] == ["no stamp"]
    tail = harness.run("r", "logLines(last: 1) { edges { node { line } } }")
    assert [edge["node"]["line"] for edge in tail["logLines"]["edges"]] == ["no stamp"]


def test_nan_and_infinity_are_kept_and_break_neither_filters_nor_responses(harness: ServerHarness) -> None:
    harness.start_run("r")
    rows = [
        '{"_step": 0, "x": NaN, "y": Infinity}',
        '{"_step": 1, "x": 1e999, "y": -Infinity}',
        "not json",
        "[1]",
    ]
    harness.stream("r", files={"wandb-history.jsonl": {"offset": 0, "content": rows}})
    harness.stream("r", files={"wandb-summary.json": {"offset": 0, "content": ['{"x": NaN, "y": 2}']}})
    assert harness.run("r", "summaryMetrics")["summaryMetrics"] == '{"x": NaN, "y": 2}'
    assert [row["y"] for row in history(harness, "r")] == [float("inf"), float("-inf")]
    spec = json.dumps({"keys": ["_step", "x", "y"], "samples": 10})
    query = 'query($s: [JSONString!]!) { project { run(name: "r") { sampledHistory(specs: $s) } } }'
    sampled = harness.query(query, s=[spec])["project"]["run"]["sampledHistory"]
    assert sampled == [
        [{"_step": 0, "x": "NaN", "y": "Infinity"}, {"_step": 1, "x": "Infinity", "y": "-Infinity"}]
    ]
    count = "query($f: JSONString) { project { runCount(filters: $f) } }"
    assert harness.query(count, f='{"summary_metrics.y": {"$gt": 1}}')["project"]["runCount"] == 1
    assert harness.query(count, f='{"summary_metrics.x": {"$gt": 0}}')["project"]["runCount"] == 0


def test_steps_that_repeat_and_jump_are_all_read(harness: ServerHarness) -> None:
    harness.start_run("r")
    rows = [json.dumps({"_step": step, "n": n}) for n, step in enumerate([0, 0, 5, 5, 1000])]
    harness.stream("r", files={"wandb-history.jsonl": {"offset": 0, "content": rows}})
    assert [row["n"] for row in history(harness, "r")] == [0, 1, 2, 3, 4]
    page = harness.run("r", "history(minStep: 5, maxStep: 6, samples: 1)")["history"]
    assert [json.loads(row)["n"] for row in page] == [2, 3]
    assert harness.run("r", "historyKeys")["historyKeys"]["lastStep"] == 1000


def test_key_index_includes_nested_objects_except_the_sdks(harness: ServerHarness) -> None:
    harness.start_run("r")
    harness.log("r", 0, {"a": {"b": {"c": 1.5}, "e": {}}, "image": {"_type": "image-file", "size": 3}})
    keys = harness.run("r", "historyKeys")["historyKeys"]["keys"]
    assert set(keys) == {"_step", "a.b.c", "a.e", "image"}
    assert keys["a.b.c"] == {
        "typeCounts": [{"type": "number", "count": 1}],
        "monotonic": True,
        "previousValue": 1.5,
    }


@pytest.mark.parametrize("step", [10**30, -(10**30), 1.5, "7", None, True, [1]])
def test_invalid_steps_are_harmless(harness: ServerHarness, step: object) -> None:
    harness.start_run("r")
    row = json.dumps({"_step": step, "x": 1})
    harness.stream("r", files={"wandb-history.jsonl": {"offset": 3, "content": [row]}})
    assert [json.loads(text)["x"] for text in harness.run("r", "history")["history"]] == [1]


def attempt(harness: ServerHarness, *values: int, at: float) -> None:
    """Lines of one process, each with a timestamp."""
    rows = [{"x": value, "_timestamp": at + number} for number, value in enumerate(values)]
    harness.log("r", 0, *rows)
    harness.stream("r", files={"output.log": {"offset": 0, "content": [f"{at} {value}" for value in values]}})


def test_restart_replaces_old_data(harness: ServerHarness) -> None:
    harness.start_run("r", config='{"a": {"value": 1}}')
    attempt(harness, 1, 2, 3, at=100.0)
    harness.stream("r", complete=True, exitcode=1)
    assert harness.start_run("r", config='{"b": {"value": 1}}')["bucket"]["historyLineCount"] == 0
    attempt(harness, 7, at=200.0)
    harness.stream("r", complete=True)
    assert [row["x"] for row in history(harness, "r")] == [7]
    assert harness.run("r", "logLineCount state config") == {
        "logLineCount": 1,
        "state": "finished",
        "config": '{"b": {"value": 1}}',
    }


def test_restart_that_logs_nothing_clears_old_data(harness: ServerHarness) -> None:
    harness.start_run("r")
    attempt(harness, 1, 2, at=100.0)
    harness.start_run("r")
    harness.stream("r", complete=True)
    assert history(harness, "r") == []


def test_resent_rows_keep_later_rows_on_the_server(harness: ServerHarness) -> None:
    harness.start_run("r")
    attempt(harness, 1, 2, 3, at=100.0)
    harness.start_run("r")
    attempt(harness, 1, 2, at=100.0)
    harness.stream("r", complete=True)
    assert [row["x"] for row in history(harness, "r")] == [1, 2, 3]


def test_resumed_run_continues_where_it_was(harness: ServerHarness) -> None:
    opaque = harness.start_run("r")["bucket"]["id"]
    attempt(harness, 1, 2, at=100.0)
    harness.stream("r", complete=True, exitcode=1)
    assert harness.start_run("r", id=opaque)["bucket"]["historyLineCount"] == 2
    assert harness.run("r", "state exitcode") == {"state": "running", "exitcode": None}
    harness.log("r", 2, {"x": 3})
    assert [row["x"] for row in history(harness, "r")] == [1, 2, 3]


def test_edit_through_the_api_does_not_restart_a_finished_run(harness: ServerHarness) -> None:
    opaque = harness.start_run("r")["bucket"]["id"]
    harness.stream("r", complete=True)
    harness.mutate("upsertBucket", "UpsertBucketInput", "inserted", id=opaque, notes="later")
    assert harness.run("r", "state notes") == {"state": "finished", "notes": "later"}


def test_message_for_an_unknown_run_is_not_found(harness: ServerHarness) -> None:
    with pytest.raises(NotFoundError):
        harness.stream("nosuch")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"files": 1}',
        b'{"files": {"a": 1}}',
        b'{"files": {"a": {"offset": -1, "content": []}}}',
        b'{"files": {"a": {"offset": 1e30, "content": []}}}',
        b'{"files": {"a": {"offset": 0, "content": [1]}}}',
        b'{"exitcode": "x"}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_invalid_message_is_rejected(body: bytes) -> None:
    with pytest.raises(RequestError):
        file_stream.parse(body)


def test_huge_exit_code_is_cut_to_what_can_be_read_back(harness: ServerHarness) -> None:
    harness.start_run("r")
    harness.stream("r", complete=True, exitcode=10**12)
    assert harness.run("r", "exitcode state") == {"exitcode": 2**31 - 1, "state": "failed"}
