"""Bayesian sweeps on the server: with the real SDK, and with a search that fails or is slow."""

import json
import logging
import queue
import threading
import zlib
from functools import cache
from typing import Any

import pytest
from machine import Machine
from sdk_scripts import run_script, script_results, start_script, upsert_sweep
from server_harness import ServerHarness

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


def test_two_agents_of_the_real_sdk_share_a_capped_sweep(machine: Machine) -> None:
    sweep = upsert_sweep(machine, BAYES)
    for agent in [start_script(machine, AGENT, sweep) for _ in range(2)]:
        script_results(agent)
    code = """
sweep = wandb.Api().sweep("acme/tests/" + sys.argv[1])
report([sweep.state, [[run.state, run.config["lr"], run.config["o"]["n"]] for run in sweep.runs]])
"""
    state, runs = run_script(machine, code, sweep)
    assert state == "FINISHED"
    assert [run[0] for run in runs] == ["finished"] * 8
    assert len({(lr, n) for _, lr, n in runs}) == 8
    # Most of the last four trials, which the search chose, have the best n; random search: one in three.
    assert sorted(n for _, _, n in runs[4:])[1] == 1
    assert "Bayesian search failed" not in (machine.home.server / "server.log").read_text()


def begin(harness: ServerHarness, sweep: str, *losses: float) -> None:
    """Trials of one agent that end with these losses."""
    agent = harness.agent(sweep)
    for loss in losses:
        name = harness.beat(agent)[0]["run_id"]
        harness.start_run(name, sweep=sweep)
        harness.log(name, 0, {"loss": loss})
        harness.stream(name, complete=True, exitcode=0)


def test_manually_added_runs_are_observed_and_the_name_is_the_seed(harness: ServerHarness) -> None:
    sweep = harness.sweep(BAYES)
    seen = []
    for number in range(5):
        lr, loss = number / 5, (number / 5 - 0.3) ** 2
        config = {"lr": {"value": lr}, "o": {"value": {"n": 1}}}
        harness.start_run(f"prior{number}", sweep=sweep, config=json.dumps(config))
        harness.log(f"prior{number}", 0, {"loss": loss})
        harness.stream(f"prior{number}", complete=True, exitcode=0)
        seen.append(bayes.Observation({"lr": lr, "o": {"n": 1}}, loss))
    space, _ = parse_space(BAYES["parameters"])
    assert space is not None
    expected = bayes.next_config(space, seen, seed=zlib.crc32(sweep.encode()))
    args = harness.beat(harness.agent(sweep))[0]["args"]
    assert {name: entry["value"] for name, entry in args.items()} == expected


def test_sweep_finishes_at_its_target(harness: ServerHarness) -> None:
    sweep = harness.sweep({**BAYES, "metric": {**BAYES["metric"], "target": 0.5}})
    begin(harness, sweep, 2.0, 0.4)
    assert harness.sweep_field(sweep) == "FINISHED"
    assert harness.beat(harness.agent(sweep)) == [{"type": "exit"}]


def test_failed_search_falls_back_to_random_and_logs_it(
    harness: ServerHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ArithmeticError("a matrix that is none")

    monkeypatch.setattr(bayes, "next_config", fail)
    with caplog.at_level(logging.ERROR):
        command = harness.beat(harness.agent(harness.sweep(BAYES)))[0]
    assert 0 <= command["args"]["lr"]["value"] <= 1
    assert "a matrix that is none" in caplog.text


def test_other_requests_are_answered_during_a_slow_search(
    harness: ServerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    thinking, enough = threading.Event(), threading.Event()

    def ponder(*args: object, **options: object) -> dict[str, Any]:
        thinking.set()
        assert enough.wait(30)
        return {"lr": 0.5, "o": {"n": 1}}

    monkeypatch.setattr(bayes, "next_config", ponder)
    sweep = harness.sweep(BAYES)
    agent, other = harness.agent(sweep), harness.agent(harness.sweep({**BAYES, "method": "random"}))
    commands: list[list[dict[str, Any]]] = []
    asking = threading.Thread(target=lambda: commands.append(harness.beat(agent)))
    asking.start()
    assert thinking.wait(30)
    name = harness.beat(other)[0]["run_id"]
    harness.start_run(name)
    harness.log(name, 0, {"loss": 1.0})
    assert not commands
    enough.set()
    asking.join(30)
    assert commands[0][0]["args"]["lr"] == {"value": 0.5}


def test_a_bayesian_sweep_preloads_its_libraries_once(
    harness: ServerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading: queue.Queue[threading.Thread] = queue.Queue()
    monkeypatch.setattr(bayes, "warm_up", lambda: loading.put(threading.current_thread()))
    monkeypatch.setattr(suggest, "_load_bayes", cache(suggest._load_bayes.__wrapped__))
    harness.beat(harness.agent(harness.sweep({**BAYES, "method": "random"})))
    assert loading.empty()
    for _ in range(2):
        harness.sweep(BAYES)
    assert loading.get(timeout=30) is not threading.current_thread()
    assert loading.empty()


def test_a_heartbeat_preloads_them_for_a_sweep_from_before_the_start(
    harness: ServerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = harness.agent(harness.sweep(BAYES))
    name = harness.beat(agent)[0]["run_id"]
    loading = threading.Event()
    monkeypatch.setattr(bayes, "warm_up", loading.set)
    monkeypatch.setattr(suggest, "_load_bayes", cache(suggest._load_bayes.__wrapped__))
    harness.beat(agent, name)
    assert loading.wait(30)
