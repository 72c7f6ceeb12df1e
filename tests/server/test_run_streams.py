"""file_stream: repeated, rewritten and hostile messages; restarted runs."""

import json
from typing import Any

import numpy as np
import pytest
from server_harness import ServerHarness

from kto_sweep.server import file_stream, history, history_blocks
from kto_sweep.server.columns import ColumnCache
from kto_sweep.server.errors import NotFoundError, RequestError


def rows_of(harness: ServerHarness, name: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in harness.run(name, "history(minStep: 0, maxStep: 1000000)")["history"]
    ]


def test_message_sent_twice_changes_nothing(harness: ServerHarness) -> None:
    harness.start_run("r")
    for _ in range(2):
        harness.log("r", 0, {"x": 1}, {"x": 2})
    harness.log("r", 1, {"x": 2}, {"x": 3})
    assert [row["x"] for row in rows_of(harness, "r")] == [1, 2, 3]
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
    assert [row["y"] for row in rows_of(harness, "r")] == [float("inf"), float("-inf")]
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
    assert [row["n"] for row in rows_of(harness, "r")] == [0, 1, 2, 3, 4]
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


def attempt(harness: ServerHarness, *values: int, at: float, offset: int = 0) -> None:
    """Lines of one process, each with a timestamp; its steps start at 0."""
    rows = [
        json.dumps({"x": value, "_step": step, "_timestamp": at + step}) for step, value in enumerate(values)
    ]
    harness.stream("r", files={"wandb-history.jsonl": {"offset": offset, "content": rows}})
    harness.stream("r", files={"output.log": {"offset": 0, "content": [f"{at} {value}" for value in values]}})


def steps(harness: ServerHarness) -> list[tuple[int, int]]:
    return [(row["_step"], row["x"]) for row in rows_of(harness, "r")]


def test_restart_replaces_old_rows_step_by_step(harness: ServerHarness) -> None:
    harness.start_run("r", config='{"a": {"value": 1}, "b": {"value": 1}}')
    attempt(harness, 1, 2, 3, at=100.0)
    harness.stream("r", complete=True, exitcode=1)
    started = harness.start_run("r", config='{"b": {"value": 2}}')
    assert started["bucket"]["historyLineCount"] == 3
    assert steps(harness) == [(0, 1), (1, 2), (2, 3)]
    for _ in range(2):  # a message sent twice changes nothing
        attempt(harness, 7, at=200.0, offset=3)
        assert steps(harness) == [(0, 7), (1, 2), (2, 3)]
    harness.stream("r", complete=True)
    assert json.loads(harness.run("r", "config")["config"]) == {"a": {"value": 1}, "b": {"value": 2}}
    assert harness.run("r", "state historyKeys")["historyKeys"]["lastStep"] == 2


def test_restart_that_goes_further_leaves_nothing_of_the_first_process(harness: ServerHarness) -> None:
    harness.start_run("r")
    attempt(harness, 1, 2, at=100.0)
    harness.start_run("r")
    attempt(harness, 7, 8, 9, at=200.0, offset=2)
    assert steps(harness) == [(0, 7), (1, 8), (2, 9)]
    harness.start_run("r")
    attempt(harness, 4, at=300.0, offset=5)
    assert steps(harness) == [(0, 4), (1, 8), (2, 9)]


@pytest.mark.parametrize("offset", [0, 3])
def test_resent_rows_keep_later_rows_on_the_server(harness: ServerHarness, offset: int) -> None:
    harness.start_run("r")
    attempt(harness, 1, 2, 3, at=100.0)
    harness.start_run("r")
    attempt(harness, 1, 2, at=100.0, offset=offset)
    harness.stream("r", complete=True)
    assert steps(harness) == [(0, 1), (1, 2), (2, 3)]


def test_an_ended_run_cannot_be_set_to_failed(harness: ServerHarness) -> None:
    opaque = harness.start_run("r")["bucket"]["id"]
    query = """mutation($id: ID!) { updateRunState(input: {id: $id, state: "failed"}) { success } }"""
    assert harness.query(query, id=opaque)["updateRunState"]["success"]
    (error,) = harness.execute(query, id=opaque)[1]["errors"]
    assert error["message"] == "invalid state transition: the run is already failed"
    assert harness.run("r", "state") == {"state": "failed"}


def test_retried_trial_starts_over(harness: ServerHarness) -> None:
    """No row, line or value of the first attempt is left when the second one starts."""
    config = {"method": "grid", "metric": {"name": "x"}, "parameters": {"lr": {"values": [1, 2]}}}
    sweep = harness.sweep(config)
    agent = harness.agent(sweep)
    (command,) = harness.beat(agent)
    name = command["run_id"]
    opaque = harness.start_run(name, sweep=sweep)["bucket"]["id"]
    assert harness.beat(agent, name) == []
    harness.log(name, 0, {"x": 1.0}, {"x": 2.0}, {"x": 3.0})
    harness.stream(name, files={"output.log": {"offset": 0, "content": ["first"]}})
    harness.stream(name, files={"wandb-summary.json": {"offset": 0, "content": ['{"x": 3.0}']}})
    harness.stream(name, complete=True, exitcode=1)
    harness.mutate("updateRunState", "UpdateRunStateInput", "success", id=opaque, state="pending")
    assert [again["run_id"] for again in harness.beat(agent)] == [name]
    assert len(rows_of(harness, name)) == 3, "a process that resumes finds its rows"
    assert harness.start_run(name, sweep=sweep)["bucket"]["historyLineCount"] == 0
    assert harness.run(name, "summaryMetrics logLineCount") == {"summaryMetrics": "{}", "logLineCount": 0}
    assert harness.sweep_field(sweep, "bestLoss") is None
    harness.log(name, 0, {"x": 5.0})
    assert [row["x"] for row in rows_of(harness, name)] == [5.0]
    assert harness.sweep_field(sweep, "bestLoss") == 5.0


def test_metric_of_replaced_rows_counts_once(harness: ServerHarness) -> None:
    sweep = harness.sweep({"method": "random", "metric": {"name": "x"}, "parameters": {"lr": {"value": 1}}})
    harness.start_run("r", sweep=sweep)
    attempt(harness, 5, 1, 3, at=100.0)
    harness.start_run("r")
    attempt(harness, 6, 7, at=200.0, offset=3)
    with harness.server.database.reader() as connection:
        rows = connection.execute("SELECT ordinal, value FROM metric_value ORDER BY ordinal").fetchall()
    assert [tuple(row) for row in rows] == [(1, 6.0), (2, 7.0), (3, 3.0)]
    assert harness.sweep_field(sweep, "bestLoss") == 3.0


def test_curves_of_a_run_whose_rows_were_replaced_are_read_again(harness: ServerHarness) -> None:
    cache = ColumnCache()

    def curve() -> list[float]:
        return cache.curves(harness.server.database.reader(), 1, 0.0, ["x"], 100)["x"]["value"]

    harness.start_run("r")
    attempt(harness, 1, 2, 3, at=100.0)
    assert curve() == [1, 2, 3]
    harness.start_run("r")
    attempt(harness, 7, at=200.0, offset=3)
    assert curve() == [7, 2, 3]
    harness.stream("r", files={"wandb-history.jsonl": {"offset": 4, "content": ['{"_step": 1, "x": 8}']}})
    assert curve() == [7, 8, 3]


def test_a_long_history_is_read_from_extracts_with_its_spikes_and_rare_values(harness: ServerHarness) -> None:
    rows = [{"loss": 1.0 + number % 2} for number in range(24_500)]
    rows[7_777]["loss"] = 50.0
    for number in range(0, 24_500, 5_000):
        rows[number]["eval/loss"] = float(number)
    harness.start_run("r")
    for start in range(0, len(rows), 3_500):
        harness.log("r", start, *rows[start : start + 3_500])
    connection = harness.server.database.reader()
    stored = connection.execute("SELECT COUNT(*) FROM history_extract").fetchone()[0]
    assert stored == 24_500 // history_blocks.BLOCK

    def curves() -> Any:
        cache = ColumnCache(history_blocks.long_columns)
        return cache.curves(connection, 1, 0.0, ["loss", "eval/loss"], 100)

    read = curves()
    assert (7_777, 50.0) in zip(read["loss"]["step"], read["loss"]["value"], strict=True)
    assert (read["loss"]["step"][0], read["loss"]["step"][-1]) == (0, 24_499)
    assert read["eval/loss"]["value"] == [0, 5_000, 10_000, 15_000, 20_000]

    def sampled(*keys: str) -> list[dict[str, Any]]:
        return history.sampled(connection, 1, json.dumps({"keys": ["_step", *keys], "samples": 100}))

    assert [row["_step"] for row in sampled("loss")] == pytest.approx(np.linspace(0, 24_499, 100), abs=130)
    assert [row["_step"] for row in sampled("eval/loss")] == [0, 5_000, 10_000, 15_000, 20_000]
    # Rows that were replaced since: their extracts do not count.
    harness.log("r", 7_777, {"loss": 3.0})
    assert max(curves()["loss"]["value"]) == 3.0


def test_lines_with_numbers_far_apart_are_read_at_once(harness: ServerHarness) -> None:
    harness.start_run("r")
    for loss, number in enumerate((0, 50_000, 2**39)):
        harness.log("r", number, {"loss": loss})
    connection = harness.server.database.reader()
    assert connection.execute("SELECT COUNT(*) FROM history_extract").fetchone()[0] == 2
    cache = ColumnCache(history_blocks.long_columns)
    assert cache.curves(connection, 1, 0.0, ["loss"], 100)["loss"]["value"] == [0, 1, 2]
    rows = history.sampled(connection, 1, json.dumps({"keys": ["_step", "loss"], "samples": 100}))
    assert [row["loss"] for row in rows] == [0, 1, 2]


def test_resumed_run_continues_where_it_was(harness: ServerHarness) -> None:
    opaque = harness.start_run("r")["bucket"]["id"]
    attempt(harness, 1, 2, at=100.0)
    harness.stream("r", complete=True, exitcode=1)
    assert harness.start_run("r", id=opaque)["bucket"]["historyLineCount"] == 2
    assert harness.run("r", "state exitcode") == {"state": "running", "exitcode": None}
    harness.log("r", 2, {"x": 3})
    assert [row["x"] for row in rows_of(harness, "r")] == [1, 2, 3]


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
