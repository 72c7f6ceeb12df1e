"""The dashboard's data: downsampled curves, columns, changed runs, and access control."""

import json
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import TimestampSigner
from machine import Machine
from sdk_scripts import upsert_sweep
from server_harness import ServerHarness

from kto_sweep.local_server import login_tokens
from kto_sweep.server import dashboard_actions, dashboard_data, dashboard_runs, uploads
from kto_sweep.server.columns import ColumnCache, downsample, round_significant
from kto_sweep.server.dashboard_comparison import ComparisonCache
from kto_sweep.server.dashboard_data import ChangeTracker, flat
from kto_sweep.server.errors import NotFoundError, RequestError
from kto_sweep.server.store import projects, runs, sweeps
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_view import ViewCache, sweep_view
from kto_sweep.sweep.sweep_state import SweepStatus, read_sweep_status

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=64)


@given(st.lists(NUMBERS, max_size=400), st.integers(1, 60))
def test_downsampled_curve_keeps_ends_and_extremes_within_its_size(values: list[float], points: int) -> None:
    chosen = downsample(np.array(values), points).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= max(points, 4)
    if values:
        kept = [values[index] for index in chosen]
        assert (chosen[0], chosen[-1]) == (0, len(values) - 1)
        assert (min(kept), max(kept)) == (min(values), max(values))


@given(st.lists(NUMBERS, min_size=30, max_size=300), st.integers(4, 20))
def test_no_bucket_of_a_downsampled_curve_loses_its_extremes(values: list[float], points: int) -> None:
    chosen = downsample(np.array(values), points)
    buckets = (points - 2) // 2
    length = math.ceil((len(values) - 2) / buckets)
    for start in range(1, len(values) - 1, length):
        part = values[start : min(start + length, len(values) - 1)]
        kept = [
            values[index] for index in chosen if start <= index < start + length and index < len(values) - 1
        ]
        if len(values) > points:
            assert (min(kept), max(kept)) == (min(part), max(part))


@given(st.lists(NUMBERS, min_size=1))
def test_rounding_keeps_six_digits(values: list[float]) -> None:
    close = round_significant(np.array(values))
    assert np.isfinite(close).all()
    np.testing.assert_allclose(close, values, rtol=1e-5, atol=5e-324)


def curve(harness: ServerHarness, cache: ColumnCache, run: str, key: str) -> Any:
    connection = harness.server.database.reader()
    project = projects.find(connection, None, None)
    assert project
    record = runs.find(connection, project.id, run)
    assert record
    return cache.curves(connection, record.id, record.created_at, [key], 100).get(key)


def test_columns_follow_a_run_and_skip_non_numbers(harness: ServerHarness) -> None:
    cache = ColumnCache()
    harness.start_run("r")
    harness.log("r", 0, {"loss": 1.0, "x": {"y": 2}}, {"loss": math.nan, "text": "a"}, {"loss": True})
    assert curve(harness, cache, "r", "loss") == {"step": [0.0], "time": [0.0], "value": [1.0]}
    harness.log("r", 3, {"loss": 0.5, "_runtime": 7.5})
    assert curve(harness, cache, "r", "loss") == {"step": [0.0, 3.0], "time": [0.0, 7.5], "value": [1.0, 0.5]}
    assert curve(harness, cache, "r", "x.y")["value"] == [2.0]
    assert curve(harness, cache, "r", "text") is None
    harness.log("r", 4, {"late": 1.7e308, "_runtime": 1.7e308})
    assert curve(harness, cache, "r", "late") == {"step": [4.0], "time": [1e9], "value": [1.7e308]}


def test_a_row_without_runtime_is_placed_by_its_timestamp(harness: ServerHarness) -> None:
    harness.start_run("r")
    harness.log("r", 0, {"loss": 1.0, "_timestamp": harness.clock() + 30})
    assert curve(harness, ColumnCache(), "r", "loss")["time"] == [30.0]


def test_columns_are_reset_when_a_run_is_restarted(harness: ServerHarness) -> None:
    cache = ColumnCache()
    harness.start_run("r")
    harness.log("r", 0, {"loss": 1.0}, {"loss": 2.0})
    assert curve(harness, cache, "r", "loss")["value"] == [1.0, 2.0]
    harness.start_run("r")
    harness.log("r", 0, {"loss": 5.0}, {"loss": 6.0}, {"loss": 7.0})
    assert curve(harness, cache, "r", "loss")["value"] == [5.0, 6.0, 7.0]


def status_of(harness: ServerHarness, sweep: Sweep) -> SweepStatus:
    return read_sweep_status(sweep_view(harness.server.database.reader(), harness.server, sweep))


def changed_since(harness: ServerHarness, changes: ChangeTracker, name: str, tag: str | None = None) -> Any:
    connection = harness.server.database.reader()
    project = projects.find(connection, None, None)
    assert project
    sweep = sweeps.find(connection, project.id, name)
    assert sweep
    status = status_of(harness, sweep)
    overview = ComparisonCache().overview(status)
    facts = dashboard_data.sweep_facts(connection, harness.server, sweep, status, overview)
    return changes.since(connection, sweep, facts, ComparisonCache().places(status), tag)


def test_a_page_gets_only_changed_runs(harness: ServerHarness) -> None:
    changes = ChangeTracker()
    sweep = harness.sweep({"method": "grid", "parameters": {"a": {"values": [1, 2, 3]}}})
    agent = harness.agent(sweep)
    [first] = harness.beat(agent)
    harness.start_run(first["run_id"], sweep=sweep)
    before = changed_since(harness, changes, sweep)
    assert before["complete"]
    assert [run["name"] for run in before["runs"]] == [first["run_id"]]
    assert changed_since(harness, changes, sweep, before["tag"]) is None
    harness.stream(first["run_id"], files={}, complete=True, exitcode=0)
    [second] = harness.beat(agent)
    after = changed_since(harness, changes, sweep, before["tag"])
    assert not after["complete"]
    assert {run["name"]: run["state"] for run in after["runs"]} == {
        first["run_id"]: "finished",
        second["run_id"]: "queued",
    }
    last = changed_since(harness, changes, sweep, after["tag"])
    assert last is None
    assert changed_since(harness, changes, sweep, "unknown")["complete"]


def test_a_page_gets_all_runs_after_a_deletion(harness: ServerHarness) -> None:
    changes = ChangeTracker()
    sweep = harness.sweep({"method": "grid", "parameters": {"a": {"values": [1, 2, 3]}}})
    [command] = harness.beat(harness.agent(sweep))
    tag = changed_since(harness, changes, sweep)["tag"]
    opaque = harness.run(command["run_id"], "id")["id"]
    harness.mutate("deleteRun", "DeleteRunInput", "success", id=opaque)
    answer = changed_since(harness, changes, sweep, tag)
    assert (answer["complete"], answer["runs"]) == (True, [])


def finished(harness: ServerHarness, count: int) -> str:
    """A random sweep with `count` finished runs, the last one best."""
    parameters = {"rate": {"min": 0.0, "max": 1.0}, "kind": {"values": ["kto", "apo"]}}
    metric = {"name": "loss", "goal": "minimize"}
    sweep = harness.sweep({"method": "random", "metric": metric, "parameters": parameters})
    for number in range(count):
        config = {"rate": {"value": number / 8}, "kind": {"value": ["kto", "apo"][number % 2]}}
        harness.start_run(f"r{number}", sweep=sweep, displayName=f"run {number}", config=json.dumps(config))
        summary = {"loss": 1.0 - number / 100, "eval/auc": (number * 7 % 10) / 10, "odd": math.nan}
        files = {"wandb-summary.json": {"offset": 0, "content": [json.dumps(summary)]}}
        harness.stream(f"r{number}", files=files, complete=True, exitcode=int(number == 3))
    return sweep


FILTERS: list[tuple[dict[str, Any], str]] = [
    ({}, "r10 r9 r8 r7 r6 r5 r4 r2 r1 r0 r3"),
    ({"first": 8}, "r1 r0 r3"),
    ({"descending": True}, "r0 r1 r2 r4 r5 r6 r7 r8 r9 r10 r3"),
    ({"filter": "rate<=0.25"}, "r2 r1 r0"),
    ({"filter": "kind=apo rate>0.5"}, "r9 r7 r5"),
    ({"filter": "kind!=APO loss<0.95"}, "r10 r8 r6"),
    ({"filter": "state=failed"}, "r3"),
    ({"filter": "FAILED"}, "r3"),
    ({"filter": "tags=keep"}, "r5"),
    ({"filter": "keep apo"}, "r5"),
    ({"filter": "eval/auc>0.75", "sort": "eval/auc"}, "r4 r7"),
    ({"sort": "run", "filter": "run"}, "r0 r1 r2 r3 r4 r5 r6 r7 r8 r9 r10"),
    ({"sort": "rate", "descending": True, "filter": "rate>1"}, "r10 r9"),
    ({"sort": "odd"}, "r10 r9 r8 r7 r6 r5 r4 r2 r1 r0 r3"),
    ({"filter": "nothing-has-this-name"}, ""),
]


def test_the_server_filters_and_orders_as_the_table_does(harness: ServerHarness) -> None:
    name = finished(harness, 11)
    opaque = harness.run("r5", "id")["id"]
    harness.mutate("upsertBucket", "UpsertBucketInput", "inserted", id=opaque, tags=["keep"])
    connection = harness.server.database.reader()
    project = projects.find(connection, None, None)
    assert project
    sweep = sweeps.find(connection, project.id, name)
    assert sweep
    status = status_of(harness, sweep)
    places = ComparisonCache().places(status)
    for query, names in FILTERS:
        asked = dashboard_runs.Query(
            **{"filter": "", "sort": "rank", "descending": False, "first": 0, **query}
        )
        answer = dashboard_runs.page(connection, sweep, status.view, places, asked)
        assert [run["name"] for run in answer["runs"]] == names.split(), query
        assert answer["total"] == len(names.split()) + asked.first


def test_a_page_of_a_large_sweep_has_the_first_runs_and_those_that_run(
    harness: ServerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard_data, "MAX_ROWS", 3)
    name = finished(harness, 6)
    changes = ChangeTracker()
    harness.start_run("late", sweep=name)
    harness.log("late", 0, {"loss": 1.0})
    first = changed_since(harness, changes, name)
    assert (first["order"], first["total"], first["first"]) == (["r5", "r4", "r2", "late"], 7, 3)
    assert [run["name"] for run in first["runs"]] == first["order"]
    harness.log("late", 1, {"loss": 0.9})
    harness.stream("r0", files={"wandb-summary.json": {"offset": 0, "content": ['{"loss": 0.1}']}})
    after = changed_since(harness, changes, name, first["tag"])
    assert after["order"] == ["r0", "r5", "r4", "late"]
    assert after["complete"], "r2 is no longer among the first"


def test_a_kept_view_follows_every_change(harness: ServerHarness) -> None:
    name, cache = finished(harness, 5), ViewCache()
    connection = harness.server.database.reader()
    project = projects.find(connection, None, None)
    assert project

    def same() -> bool:
        sweep = sweeps.find(connection, project.id, name)
        assert sweep
        kept, _ = cache.of(connection, harness.server, sweep)
        return kept == sweep_view(connection, harness.server, sweep)

    assert same()
    harness.start_run("new", sweep=name)
    assert same()
    harness.stream("new", files={"wandb-summary.json": {"offset": 0, "content": ['{"loss": NaN}']}})
    assert same()
    opaque = harness.run("r1", "id")["id"]
    harness.mutate(
        "upsertBucket", "UpsertBucketInput", "inserted", id=opaque, config='{"rate": {"value": 9}}'
    )
    assert same()
    harness.mutate("deleteRun", "DeleteRunInput", "success", id=opaque)
    assert same()
    sweep = harness.query("{ project { sweep(sweepName: %s) { id } } }" % json.dumps(name))  # noqa: UP031
    config = {
        "method": "random",
        "metric": {"name": "eval/auc"},
        "parameters": {"rate": {"min": 0.0, "max": 1.0}},
    }
    given = {"id": sweep["project"]["sweep"]["id"], "config": json.dumps(config)}
    harness.mutate("upsertSweep", "UpsertSweepInput", "sweep { name }", **given)
    assert same()


def test_values_of_any_kind_become_cells(harness: ServerHarness) -> None:
    values = {"a": {"b": [1, 2], "c": {}}, "n": math.nan, "i": 2**60, "t": "x" * 1000, "f": 0.1 + 0.2}
    cells = flat(values)
    assert cells == {"a.b": "[1, 2]", "a.c": "{}", "n": "nan", "i": str(2**60), "t": cells["t"], "f": 0.3}
    assert len(cells["t"]) == 300
    json.dumps(cells, allow_nan=False)


@pytest.mark.parametrize("runtime", ["9" * 400, "1e308", "-5", "NaN", "Infinity", '"x"', "{}"])
def test_an_invalid_runtime_does_not_break_the_list(harness: ServerHarness, runtime: str) -> None:
    """Two runs, whose sum would overflow too; the server uses their heartbeats instead."""
    sweep = harness.sweep({"method": "grid", "parameters": {"a": {"values": [1, 2]}}})
    for _ in range(2):
        [command] = harness.beat(harness.agent(sweep))
        harness.start_run(command["run_id"], sweep=sweep)
        content = [f'{{"_runtime": {runtime}}}']
        harness.clock.time += 10
        harness.stream(command["run_id"], files={"wandb-summary.json": {"offset": 0, "content": content}})
    reader = harness.server.database.reader()
    (line,) = dashboard_data.sweep_list(
        reader, None, partial(status_of, harness), ComparisonCache().overview
    )["sweeps"]
    assert line["time"]["spent"] >= 0
    assert [run["seconds"] for run in changed_since(harness, ChangeTracker(), sweep)["runs"]] == [10, 10]


@pytest.mark.parametrize("action", [{}, {"action": "delete"}, {"action": ["pause"]}])
def test_an_unknown_action_is_rejected(harness: ServerHarness, action: dict[str, Any]) -> None:
    harness.sweep({"method": "grid", "parameters": {"a": {"values": [1, 2]}}})
    [sweep] = sweeps.page(harness.server.database.reader(), None, 1)
    with pytest.raises(RequestError, match="not one of pause, resume, stop, cancel"):
        dashboard_actions.of_sweep(harness.server, sweep, action)


@pytest.mark.parametrize(
    "action",
    [
        {"action": "annotate", "tags": "a", "notes": ""},
        {"action": "annotate", "tags": [""], "notes": ""},
        {"action": "annotate", "tags": ["x" * 65], "notes": ""},
        {"action": "annotate", "tags": [], "notes": None},
        {"action": "annotate", "tags": [], "notes": "x" * 10_001},
        {"action": "burn"},
    ],
)
def test_invalid_tags_and_notes_are_rejected(harness: ServerHarness, action: dict[str, Any]) -> None:
    harness.start_run("r")
    run = runs.get(harness.server.database.reader(), 1)
    assert run
    with pytest.raises(RequestError):
        dashboard_actions.of_run(harness.server, run, action)


def at(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda self: seconds)


def test_a_file_url_is_valid_for_a_week_and_when_the_clock_is_set_back(
    harness: ServerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.start_run("r")
    announce = {"project_name": "uncategorized", "run_name": "r", "files": ["weights"]}
    at(monkeypatch, int(harness.clock()))
    _, [file] = harness.server.database.write(lambda c: uploads.announce(c, harness.server, announce))
    token = uploads.url(harness.server, "http://test", file).split("/")[-2]
    harness.clock.set(-3600)
    assert uploads.authorize(harness.server, token) == file
    harness.clock.set(3600 + 7 * 86400)
    assert uploads.authorize(harness.server, token) == file
    with pytest.raises(NotFoundError):
        uploads.authorize(harness.server, login_tokens.create(harness.server.key))
    harness.clock.time += 1
    with pytest.raises(NotFoundError, match="expired"):
        uploads.authorize(harness.server, token)


@pytest.mark.parametrize(
    "name", ["../dashboard.py", "..%2fdashboard.py", "%2e%2e/app.py", "nosuch.js", "..", "x" * 300]
)
def test_static_serves_only_its_own_files(machine: Machine, name: str) -> None:
    assert machine.http.get(f"/-/static/x/{name}").status_code == 404


@pytest.mark.parametrize("query", ["points=x", "points=-1", "points=" + "9" * 30])
def test_an_invalid_number_is_400(machine: Machine, query: str) -> None:
    upsert_sweep(machine, {"method": "grid", "parameters": {"a": {"values": [1]}}})
    path = f"/-/data/acme/tests/curves?run=x&key=loss&{query}"
    assert machine.http.get(path).status_code == 400
