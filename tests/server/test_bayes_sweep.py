"""Bayesian sweeps on the server: with the real SDK, and what becomes of a search that fails or takes long."""

import json
import logging
import queue
import threading
import zlib
from functools import cache
from typing import Any

import pytest
from server_bench import Bench, Box

from kto_sweep.search import bayes
from kto_sweep.search.space_parser import parse_space
from kto_sweep.server import suggest

BAYES: dict[str, Any] = {
    "method": "bayes",
    "run_cap": 8,
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {"lr": {"min": 0.0, "max": 1.0}, "o": {"parameters": {"n": {"values": [1, 2, 3]}}}},
}
AGENT = """
def trial():
    with wandb.init() as run:
        run.log({"loss": (run.config.lr - 0.3) ** 2 + run.config.o["n"]})
wandb.agent(sys.argv[1], function=trial, entity="acme", project="tests")
"""


def test_two_agents_of_the_real_sdk_share_a_capped_sweep(box: Box) -> None:
    sweep = box.sweep(BAYES)
    for agent in [box.start(AGENT, sweep) for _ in range(2)]:
        box.finish(agent)
    code = """
sweep = wandb.Api().sweep("acme/tests/" + sys.argv[1])
tell([sweep.state, [[run.state, run.config["lr"], run.config["o"]["n"]] for run in sweep.runs]])
"""
    state, runs = box.run(code, sweep)
    assert state == "FINISHED"
    assert [run[0] for run in runs] == ["finished"] * 8
    assert len({(lr, n) for _, lr, n in runs}) == 8
    # Of the last four, which the process chose, most have the best n; chance would give it to one in three.
    assert sorted(n for _, _, n in runs[4:])[1] == 1
    assert "Bayesian search failed" not in (box.home.server / "server.log").read_text()


def begin(bench: Bench, sweep: str, *losses: float) -> None:
    """Trials of one agent that end with these losses."""
    agent = bench.agent(sweep)
    for loss in losses:
        name = bench.beat(agent)[0]["run_id"]
        bench.start_run(name, sweep=sweep)
        bench.log(name, 0, {"loss": loss})
        bench.stream(name, complete=True, exitcode=0)


def test_runs_attached_by_hand_are_observed_and_the_name_is_the_seed(bench: Bench) -> None:
    sweep = bench.sweep(BAYES)
    seen = []
    for number in range(5):
        lr, loss = number / 5, (number / 5 - 0.3) ** 2
        config = {"lr": {"value": lr}, "o": {"value": {"n": 1}}}
        bench.start_run(f"prior{number}", sweep=sweep, config=json.dumps(config))
        bench.log(f"prior{number}", 0, {"loss": loss})
        bench.stream(f"prior{number}", complete=True, exitcode=0)
        seen.append(bayes.Observation({"lr": lr, "o": {"n": 1}}, loss))
    space, _ = parse_space(BAYES["parameters"])
    assert space is not None
    expected = bayes.next_config(space, seen, seed=zlib.crc32(sweep.encode()))
    args = bench.beat(bench.agent(sweep))[0]["args"]
    assert {name: entry["value"] for name, entry in args.items()} == expected


def test_sweep_ends_at_its_target(bench: Bench) -> None:
    sweep = bench.sweep({**BAYES, "metric": {**BAYES["metric"], "target": 0.5}})
    begin(bench, sweep, 2.0, 0.4)
    assert bench.sweep_field(sweep) == "FINISHED"
    assert bench.beat(bench.agent(sweep)) == [{"type": "exit"}]


def test_search_that_fails_leaves_its_trial_to_chance_and_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ArithmeticError("a matrix that is none")

    monkeypatch.setattr(bayes, "next_config", fail)
    with caplog.at_level(logging.ERROR):
        command = bench.beat(bench.agent(bench.sweep(BAYES)))[0]
    assert 0 <= command["args"]["lr"]["value"] <= 1
    assert "a matrix that is none" in caplog.text


def test_other_requests_are_answered_while_a_search_thinks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    thinking, enough = threading.Event(), threading.Event()

    def ponder(*args: object, **options: object) -> dict[str, Any]:
        thinking.set()
        assert enough.wait(30)
        return {"lr": 0.5, "o": {"n": 1}}

    monkeypatch.setattr(bayes, "next_config", ponder)
    sweep = bench.sweep(BAYES)
    agent, other = bench.agent(sweep), bench.agent(bench.sweep({**BAYES, "method": "random"}))
    commands: list[list[dict[str, Any]]] = []
    asking = threading.Thread(target=lambda: commands.append(bench.beat(agent)))
    asking.start()
    assert thinking.wait(30)
    name = bench.beat(other)[0]["run_id"]
    bench.start_run(name)
    bench.log(name, 0, {"loss": 1.0})
    assert not commands
    enough.set()
    asking.join(30)
    assert commands[0][0]["args"]["lr"] == {"value": 0.5}


def test_a_bayesian_sweep_has_its_libraries_loaded_before_an_agent_asks_and_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading: queue.Queue[threading.Thread] = queue.Queue()
    monkeypatch.setattr(bayes, "load", lambda: loading.put(threading.current_thread()))
    monkeypatch.setattr(suggest, "_load_bayes", cache(suggest._load_bayes.__wrapped__))
    bench.beat(bench.agent(bench.sweep({**BAYES, "method": "random"})))
    assert loading.empty()
    for _ in range(2):
        bench.sweep(BAYES)
    assert loading.get(timeout=30) is not threading.current_thread()
    assert loading.empty()


def test_a_heartbeat_has_them_loaded_for_a_sweep_from_before_the_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = bench.agent(bench.sweep(BAYES))
    name = bench.beat(agent)[0]["run_id"]
    loading = threading.Event()
    monkeypatch.setattr(bayes, "load", loading.set)
    monkeypatch.setattr(suggest, "_load_bayes", cache(suggest._load_bayes.__wrapped__))
    bench.beat(agent, name)
    assert loading.wait(30)
