"""Run filters and orders, as SQL over real runs."""

import json
from typing import Any

import pytest
from server_harness import ServerHarness

from kto_sweep.server.store.filters import FilterError, compile_filter, compile_order

UUID = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
TOO_LARGE = [
    "(?:[a-z]{2000}y){3000}",
    "a{1000000}",
    "(?x)(?:(?:ab){400}) {,400}",
    r"(?:a\){50}{50}){50}",
    "(?:" * 18 + "a" + "){2}" * 18,
]
"""Patterns that would take seconds and gigabytes to compile, or may."""
COUNT = "query($f: JSONString) { project { runCount(filters: $f) } }"
NAMES = """query($f: JSONString, $o: String, $first: Int, $after: String) { project {
    runs(filters: $f, order: $o, first: $first, after: $after) {
        edges { cursor node { name } } pageInfo { endCursor hasNextPage } } } }"""


@pytest.fixture
def runs(harness: ServerHarness) -> ServerHarness:
    """Five runs r0 .. r4 that differ in everything."""
    for number in range(5):
        name = f"r{number}"
        config = {
            "lr": number,
            "o": {"n": number * 10, "s": "x"},
            "a.b": number,
            'quo"te': number,
            "flag": number > 2,
        }
        summary = {
            "loss": 5 - number,
            "eval/auc": number / 10,
            "deep": {"er": number},
            "text": "t",
            "list": [1],
        }
        if number == 4:
            summary = {"loss": "nothing"}
        wrapped = json.dumps({key: {"value": value} for key, value in config.items()})
        harness.start_run(
            name,
            config=wrapped,
            summaryMetrics=json.dumps(summary),
            tags=["even" if number % 2 == 0 else "odd", f"t{number}"],
            groupName="g" if number < 2 else None,
        )
        harness.clock.time += 60
    harness.stream("r0", complete=True)
    return harness


def names(harness: ServerHarness, filters: Any = None, order: str | None = None) -> str:
    text = None if filters is None else json.dumps(filters)
    edges = harness.query(NAMES, f=text, o=order)["project"]["runs"]["edges"]
    return "".join(edge["node"]["name"][1:] for edge in edges)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, "01234"),
        ({"state": "finished"}, "0"),
        ({"state": {"$ne": "finished"}}, "1234"),
        ({"name": {"$in": ["r1", "r3", "nosuch"]}}, "13"),
        ({"name": {"$nin": ["r1", "r3"]}}, "024"),
        ({"config.lr": 2}, "2"),
        ({"config.lr.value": {"$gte": 3}}, "34"),
        ({"config.o.n": {"$lt": 20}}, "01"),
        ({"config.o.value.n": 30}, "3"),
        ({"config.a.b": 4}, "4"),
        ({"config.flag": True}, "34"),
        ({"config.nosuch": {"$exists": False}}, "01234"),
        ({"config.nosuch": None}, "01234"),
        ({"summary_metrics.loss": {"$lte": 3, "$gt": 2}}, "2"),
        ({"summary_metrics.eval/auc": {"$gt": 0.15}}, "23"),
        ({"summary_metrics.deep.er": 1}, "1"),
        ({"summary_metrics.text": "t"}, "0123"),
        ({"$or": [{"config.lr": 0}, {"config.lr": 4}]}, "04"),
        ({"$and": [{"config.lr": {"$gt": 0}}, {"$not": {"config.lr": 2}}]}, "134"),
        ({"$nor": [{"config.lr": 0}, {"config.lr": 4}]}, "123"),
        ({"config.lr": {"$not": {"$gt": 1}}}, "01"),
        ({"$not": {"config.nosuch": {"$gt": 1}}}, "01234"),
        ({"$nor": [{"config.nosuch": {"$gt": 1}}, {"config.lr": 4}]}, "0123"),
        ({"summary_metrics.text": {"$gt": 1}}, ""),
        ({"summary_metrics.text": {"$lte": "t"}}, "0123"),
        ({"config.lr": {"$lt": "x"}}, ""),
        ({"tags": "odd"}, "13"),
        ({"tags": {"$in": ["t0", "t1"]}}, "01"),
        ({"tags": {"$all": ["even", "t2"]}}, "2"),
        ({"tags": {"$nin": ["even"]}}, "13"),
        ({"group": "g"}, "01"),
        ({"group": None}, "234"),
        ({"name": {"$regex": "^r[12]$"}}, "12"),
        ({"created_at": {"$gt": "2023-11-14T22:14:30Z"}}, "234"),
        ({"created_at": {"$lt": "2023-11-14T22:14:30+00:00"}}, "01"),
        ({"$or": []}, ""),
        ({"$and": []}, "01234"),
        ({'config.quo"te': 1}, ""),
        ({"config.ze\0ro": 1}, ""),
        ({"name": "'; DROP TABLE run; --"}, ""),
        ({"config.lr') OR 1=1 --": 1}, ""),
    ],
)
def test_filter(runs: ServerHarness, filters: dict[str, Any], expected: str) -> None:
    assert names(runs, filters) == expected
    assert runs.query(COUNT, f=json.dumps(filters))["project"]["runCount"] == len(expected)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (None, "01234"),
        ("+created_at", "01234"),
        ("-created_at", "43210"),
        ("+summary_metrics.loss", "32104"),
        ("-summary_metrics.loss", "01234"),
        ("summary_metrics.loss", "32104"),
        ("-config.lr.value", "43210"),
        ("+config.o.n", "01234"),
        ("-summary_metrics.deep.er", "32104"),
        ("+summary_metrics.nosuch", "01234"),
        ("-heartbeat_at", "04321"),
        ("+state", "01234"),
    ],
)
def test_order_puts_runs_without_a_number_last(runs: ServerHarness, order: str | None, expected: str) -> None:
    assert names(runs, order=order) == expected


def test_pages_join_up(runs: ServerHarness) -> None:
    names_of_pages, after = "", None
    while True:
        page = runs.query(NAMES, o="-created_at", first=2, after=after)["project"]["runs"]
        names_of_pages += "".join(edge["node"]["name"][1:] for edge in page["edges"])
        after = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
    assert names_of_pages == "43210"


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[1]",
        '{"$or": 1}',
        '{"a": 1}',
        '{"state": {"$where": "1"}}',
        '{"name": {"$in": "r1"}}',
        '{"name": {"$regex": "("}}',
        json.dumps({"name": {"$regex": "a" * 201}}),
        *(json.dumps({"name": {"$regex": pattern}}) for pattern in TOO_LARGE),
        '{"created_at": {"$gt": "yesterday"}}',
        '{"config.lr": {"$in": [NaN]}}',
        '{"$and": ' * 20 + "1" + "}" * 20,
        json.dumps({"$or": [{"name": "x"}] * 1000}),
    ],
)
def test_invalid_filter_is_an_error_with_a_reason(harness: ServerHarness, text: str) -> None:
    with pytest.raises(FilterError):
        compile_filter(text)
    harness.start_run("r")
    status, body = harness.execute(COUNT, f=text)
    assert status == 200
    assert body["errors"][0]["message"]


def test_size_of_a_pattern_is_limited_before_it_is_compiled(harness: ServerHarness) -> None:
    harness.start_run("0b0e3a5e-1c1d-4a52-9b6e-8f00c0ffee00")
    assert harness.query(COUNT, f=json.dumps({"name": {"$regex": UUID}}))
    for pattern in TOO_LARGE:
        _, body = harness.execute(COUNT, f=json.dumps({"name": {"$regex": pattern}}))
        assert "more than 100,000 characters" in body["errors"][0]["message"]


def test_catastrophic_pattern_times_out(harness: ServerHarness) -> None:
    harness.start_run("a" * 60 + "b")
    status, body = harness.execute(COUNT, f='{"name": {"$regex": "(a|aa)+$"}}')
    assert status == 200
    assert "takes too long" in body["errors"][0]["message"]


def test_order_by_an_unknown_key_is_an_error() -> None:
    with pytest.raises(FilterError, match="nosuch"):
        compile_order("+nosuch")


def test_invalid_cursor_is_an_error(runs: ServerHarness) -> None:
    assert "cursor" in runs.execute(NAMES, after="x")[1]["errors"][0]["message"]
