"""Runs that several processes write, and runs that branch off another run's history."""

import json
from typing import Any

import pytest
from machine import Machine
from sdk_scripts import run_script, script_results, start_script
from server_harness import GRID, ServerHarness

START = """mutation($name: String!, $config: JSONString) { upsertBucket(input:
    {name: $name, host: "box", config: $config}) { inserted bucket { id state } } }"""


def start(harness: ServerHarness, name: str, **config: Any) -> str:
    """The first upsert of one of the processes; the run's state."""
    text = json.dumps({key: {"value": value} for key, value in config.items()})
    status, body = harness.execute(START, shared=True, name=name, config=text)
    assert status == 200, body
    return str(body["data"]["upsertBucket"]["bucket"]["state"])


def log(harness: ServerHarness, writer: str, offset: int, *rows: dict[str, Any]) -> None:
    content = [json.dumps(row) for row in rows]
    chunk = {"wandb-history.jsonl": {"offset": offset, "content": content}}
    harness.stream("r", writer=writer, files=chunk)


def rows(harness: ServerHarness, name: str = "r") -> list[dict[str, Any]]:
    return [json.loads(text) for text in harness.run(name, "history(minStep: 0, maxStep: 1000)")["history"]]


def test_rows_of_all_writers_are_kept_and_get_the_next_steps(harness: ServerHarness) -> None:
    start(harness, "r")
    start(harness, "r")
    log(harness, "a", 0, {"a": 0}, {"a": 1})
    for _ in range(2):  # a message sent twice changes nothing
        log(harness, "b", 0, {"b": 0, "_step": 99})
    log(harness, "a", 1, {"a": 1}, {"a": 2})
    assert rows(harness) == [
        {"a": 0, "_step": 0}, {"a": 1, "_step": 1}, {"b": 0, "_step": 2}, {"a": 2, "_step": 3}
    ]  # fmt: skip
    assert harness.run("r", "historyLineCount") == {"historyLineCount": 4}


def test_configuration_and_summary_of_all_writers_are_merged(harness: ServerHarness) -> None:
    start(harness, "r", lr=1, _wandb={"t": 1, "e": {"a": {"host": "x"}}})
    start(harness, "r", rank=1, _wandb={"t": 2, "e": {"b": {"host": "y"}}})
    log(harness, "a", 0, {"a": 0}, {"a": 1})
    for writer, summary in (("a", {"a": 1, "_step": 1}), ("b", {"b": 5, "_step": 0})):
        chunk = {"wandb-summary.json": {"offset": 0, "content": [json.dumps(summary)]}}
        harness.stream("r", writer=writer, files=chunk)
    shown = harness.run("r", "config summaryMetrics")
    assert json.loads(shown["config"]) == {
        "lr": {"value": 1},
        "rank": {"value": 1},
        "_wandb": {"value": {"t": 2, "e": {"a": {"host": "x"}, "b": {"host": "y"}}}},
    }
    assert json.loads(shown["summaryMetrics"]) == {"a": 1, "b": 5, "_step": 1}


def test_console_lines_of_writers_are_rewritten_each_in_its_place(harness: ServerHarness) -> None:
    start(harness, "r")
    for writer, text in (("a", "a 10%"), ("b", "b 10%"), ("a", "a 100%")):
        chunk = {"output.log": {"offset": 0, "content": [text]}}
        harness.stream("r", writer=writer, files=chunk)
    shown = harness.run("r", "logLines(first: 9) { edges { node { line } } }")
    assert [edge["node"]["line"] for edge in shown["logLines"]["edges"]] == ["a 100%", "b 10%"]


def test_only_a_writer_that_completes_ends_the_run(harness: ServerHarness) -> None:
    start(harness, "r")
    start(harness, "r")
    harness.stream("r", writer="b")
    assert harness.run("r")["state"] == "running"
    harness.stream("r", writer="a", complete=True)
    harness.stream("r", writer="b")
    assert harness.run("r")["state"] == "finished"
    assert start(harness, "r") == "finished", "a late writer does not start it again"
    log(harness, "late", 0, {"late": 1})
    assert rows(harness) == [{"late": 1, "_step": 0}]
    assert harness.run("r")["state"] == "finished"


def test_a_crashed_run_is_running_again_when_a_writer_starts(harness: ServerHarness) -> None:
    start(harness, "r")
    harness.stream("r", writer="a", complete=True, exitcode=1)
    assert harness.run("r")["state"] == "failed"
    assert start(harness, "r") == "running"


def fork(harness: ServerHarness, name: str, parent: str, step: float, **config: Any) -> tuple[int, Any]:
    point = {"branch_point": {"run_id": parent, "step": step}}
    entries = {**config, "_wandb": {"t": 1, **point}}
    text = json.dumps({key: {"value": value} for key, value in entries.items()})
    return harness.execute(
        START.replace("id state", "historyLineCount config summaryMetrics"), name=name, config=text
    )


def test_fork_has_the_rows_and_the_configuration_of_its_parent(harness: ServerHarness) -> None:
    harness.start_run("p", config='{"lr": {"value": 1}, "b": {"value": 2}, "_wandb": {"value": {"t": 9}}}')
    harness.log("p", 0, {"x": 0, "y": 5}, {"x": 1}, {"x": 2}, {"x": 3})
    status, body = fork(harness, "child", "p", 2.0, b=3)
    assert status == 200, body
    made = body["data"]["upsertBucket"]["bucket"]
    assert made["historyLineCount"] == 3
    assert json.loads(made["config"]) == {
        "lr": {"value": 1},
        "b": {"value": 3},
        "_wandb": {"value": {"t": 1, "branch_point": {"run_id": "p", "step": 2.0}}},
    }
    assert json.loads(made["summaryMetrics"]) == {"x": 2, "y": 5, "_step": 2}
    harness.log("child", 3, {"x": 77})
    chunk = {"wandb-summary.json": {"offset": 0, "content": ['{"x": 77, "_step": 3}']}}
    harness.stream("child", files=chunk)
    assert [row["x"] for row in rows(harness, "child")] == [0, 1, 2, 77]
    assert json.loads(harness.run("child", "summaryMetrics")["summaryMetrics"]) == {
        "x": 77,
        "y": 5,
        "_step": 3,
    }
    assert [row["x"] for row in rows(harness, "p")] == [0, 1, 2, 3], "the parent is as it was"
    harness.start_run("child", config='{"_wandb": {"value": {"t": 2}}}')
    internal = json.loads(harness.run("child", "config")["config"])["_wandb"]["value"]
    assert internal["branch_point"] == {"run_id": "p", "step": 2.0}, "a later process keeps the lineage"


@pytest.mark.parametrize(
    ("parent", "step", "words"),
    [
        ("nosuch", 1, "project local/uncategorized has no such run"),
        ("p", 4, "cannot fork run p at step 4: its last step is 3"),
        ("p", -1, "cannot fork run p at step -1: its last step is 3"),
        ("empty", 0, "cannot fork run empty at step 0: it has logged nothing"),
    ],
)
def test_fork_from_nothing_is_refused_and_makes_no_run(
    harness: ServerHarness, parent: str, step: float, words: str
) -> None:
    harness.start_run("empty")
    harness.start_run("p")
    harness.log("p", 0, *[{"x": value} for value in range(4)])
    status, body = fork(harness, "child", parent, step)
    assert status == 400
    assert words in body["errors"][0]["message"]
    found = 'query { project { bucket(name: "child", missingOk: true) { id } } }'
    assert harness.query(found)["project"]["bucket"] is None


def test_a_trial_of_a_sweep_can_be_a_fork(harness: ServerHarness) -> None:
    harness.start_run("p")
    harness.log("p", 0, {"loss": 3.0}, {"loss": 2.0}, {"loss": 1.0})
    sweep = harness.sweep(GRID)
    (command,) = harness.beat(harness.agent(sweep))
    status, body = fork(harness, command["run_id"], "p", 1.0)
    assert status == 200, body
    assert [row["loss"] for row in rows(harness, command["run_id"])] == [3, 2]
    assert harness.sweep_field(sweep, "bestLoss") == 2


REWIND = """mutation($name: String!, $metric: String!, $value: Float!) { rewindRun(input:
    {runName: $name, metricName: $metric, metricValue: $value}) { rewoundRun { name historyLineCount } } }"""


def test_rewind_cuts_history_summary_and_metric(harness: ServerHarness) -> None:
    sweep = harness.sweep({"method": "random", "metric": {"name": "x"}, "parameters": {"lr": {"value": 1}}})
    opaque = harness.start_run("r", sweep=sweep)["bucket"]["id"]
    harness.log("r", 0, {"x": 9, "y": 1}, {"x": 8}, {"x": 7}, {"x": 6})
    harness.stream("r", files={"output.log": {"offset": 0, "content": ["old"]}})
    harness.stream("r", complete=True)
    assert harness.sweep_field(sweep, "bestLoss") == 6
    rewound = harness.query(REWIND, name="r", metric="_step", value=1.0)["rewindRun"]["rewoundRun"]
    assert rewound == {"name": "r", "historyLineCount": 2}
    assert harness.sweep_field(sweep, "bestLoss") == 8
    shown = harness.run("r", "summaryMetrics logLineCount")
    assert json.loads(shown["summaryMetrics"]) == {"x": 8, "y": 1, "_step": 1}
    assert shown["logLineCount"] == 0
    harness.start_run("r", id=opaque)
    harness.log("r", 2, {"x": 99})
    assert [row["x"] for row in rows(harness)] == [9, 8, 99]


def test_rewind_is_refused_with_a_reason(harness: ServerHarness) -> None:
    harness.start_run("r")
    harness.log("r", 0, {"x": 0}, {"x": 1})

    def refused(name: str, metric: str, value: float) -> str:
        status, body = harness.execute(REWIND, name=name, metric=metric, value=value)
        assert status == 400
        return str(body["errors"][0]["message"])

    assert "cannot rewind a run that is not in a terminal state" in refused("r", "_step", 0)
    harness.stream("r", complete=True)
    assert "has no such run" in refused("nosuch", "_step", 0)
    assert "only to _step" in refused("r", "x", 0)
    assert "cannot rewind run r at step 2: its last step is 1" in refused("r", "_step", 2)
    assert len(rows(harness)) == 2


def test_the_real_sdk_forks_and_rewinds(machine: Machine) -> None:
    code = """
with wandb.init(id="parent", config={"lr": 1}) as run:
    for x in range(5):
        run.log({"x": x})
with wandb.init(fork_from="parent?_step=2", id="child", config={"b": 2}) as run:
    run.log({"x": 77})
with wandb.init(resume_from="parent?_step=1") as run:
    run.log({"x": 99})
def refused(**point):
    try:
        wandb.init(**point)
    except wandb.Error as error:
        return str(error)
api = wandb.Api()
runs = [api.run(f"acme/tests/{name}") for name in ("parent", "child")]
report([[[[row["_step"], row["x"]] for row in run.scan_history()], run.config] for run in runs])
report([refused(fork_from="parent?_step=50"), refused(fork_from="nosuch?_step=1"),
        refused(resume_from="parent?_step=50"), refused(resume_from="nosuch?_step=1")])
"""
    runs, refusals = script_results(start_script(machine, code))
    assert runs == [
        [[[0, 0], [1, 1], [2, 99]], {"lr": 1}],
        [[[0, 0], [1, 1], [2, 2], [3, 77]], {"lr": 1, "b": 2}],
    ]
    for verb, message in zip(("fork", "fork", "rewind", "rewind"), refusals, strict=True):
        assert f"cannot {verb} run" in message


def test_processes_of_the_real_sdk_share_a_run(machine: Machine) -> None:
    code = """
name, primary = sys.argv[1], sys.argv[1] == "a"
settings = wandb.Settings(mode="shared", x_label=name, x_primary=primary, x_update_finish_state=primary)
with wandb.init(id="shared", config={name: 1}, settings=settings) as run:
    for value in range(5):
        run.log({name: value})
        time.sleep(0.3)
"""
    processes = [start_script(machine, code, name) for name in ("a", "b")]
    for process in processes:
        script_results(process)
    state, config, values = run_script(
        machine,
        """
run = wandb.Api().run("acme/tests/shared")
report([run.state, run.config, list(run.scan_history())])
""",
    )
    assert state == "finished"
    assert config == {"a": 1, "b": 1}
    assert [row["_step"] for row in values] == list(range(10))
    for name in ("a", "b"):
        assert [row[name] for row in values if name in row] == list(range(5))


def test_a_trial_that_an_agent_retries_has_only_the_rows_of_its_last_attempt(machine: Machine) -> None:
    code = '''
counts = iter([5, 2])
def trial():
    with wandb.init() as run:
        for value in range(next(counts)):
            run.log({"x": value})
sweep = wandb.sweep({"method": "grid", "parameters": {"lr": {"values": [1]}}}, project="retried")
wandb.agent(sweep, function=trial, project="retried")
found = wandb.Api().sweep(f"acme/retried/{sweep}")
first = [row["x"] for row in found.runs[0].scan_history()]
wandb.Api().run(f"acme/retried/{found.runs[0].id}").update_state("pending")
resume = """mutation($id: ID!, $state: String!) {
    upsertSweep(input: {id: $id, state: $state}) { sweep { id } } }"""
known = {"id": found._attrs["id"], "state": "RUNNING"}
wandb.Api()._service_api.execute_graphql(resume, variables=known)
wandb.agent(sweep, function=trial, project="retried")
again = wandb.Api().sweep(f"acme/retried/{sweep}")
report([again.state, first, [[row["x"] for row in run.scan_history(use_cache=False)] for run in again.runs]])
'''
    state, first, rows = run_script(machine, code)
    assert state == "FINISHED"
    assert first == [0, 1, 2, 3, 4]
    assert rows == [[0, 1]]
