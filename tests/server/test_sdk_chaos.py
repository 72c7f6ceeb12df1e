"""A grid under the unmodified wandb SDK while its server is killed: no cell is lost or run twice."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from machine import Machine
from sdk_scripts import graphql, script_results, start_script, upsert_sweep

from kto_sweep.local_server.process import server_pid
from kto_sweep.local_server.start import ensure_server

ROWS = 12
GRID = {
    "method": "grid",
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {"lr": {"values": [0.1, 0.2, 0.3]}, "b": {"values": [1, 2, 3]}},
}
AGENT = f"""
def trial():
    with wandb.init() as run:
        for row in range({ROWS}):
            run.log({{"loss": run.config.lr * run.config.b, "row": row}})
            time.sleep(0.1)
wandb.agent(sys.argv[1], function=trial)
"""
RUNS = """query($sweep: String!) { project(entityName: "acme", name: "tests") { sweep(sweepName: $sweep) {
    state runs { edges { node { name state config historyLineCount history(samples: 1000) } } } } } }"""


def runs_of(machine: Machine, sweep: str) -> list[dict[str, Any]]:
    edges = graphql(machine, RUNS, sweep=sweep)["project"]["sweep"]["runs"]["edges"]
    return [edge["node"] for edge in edges]


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


def kill_and_start_again(machine: Machine) -> None:
    pid = server_pid(machine.home)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert ensure_server(machine.home) == machine.address


def lines_by_run(machine: Machine, sweep: str) -> Counter[str]:
    return Counter({run["name"]: run["historyLineCount"] for run in runs_of(machine, sweep)})


@pytest.mark.slow  # tests/faults kills the server, too
def test_grid_with_three_agents_survives_two_server_kills(machine: Machine) -> None:
    sweep = upsert_sweep(machine, GRID)
    agents = [start_script(machine, AGENT, sweep) for _ in range(3)]
    for finished in (1, 4):
        until(
            lambda least=finished: sum(run["state"] == "finished" for run in runs_of(machine, sweep)) >= least
        )
        before = lines_by_run(machine, sweep)
        kill_and_start_again(machine)
        assert lines_by_run(machine, sweep) >= before, "what had been acknowledged is still there"
    for agent in agents:
        script_results(agent)
    runs = runs_of(machine, sweep)
    configs = [json.loads(run["config"]) for run in runs]
    cells = Counter((config["lr"]["value"], config["b"]["value"]) for config in configs)
    assert cells == Counter((lr, b) for lr in (0.1, 0.2, 0.3) for b in (1, 2, 3))
    assert {run["state"] for run in runs} == {"finished"}
    for run in runs:
        assert [json.loads(row)["row"] for row in run["history"]] == list(range(ROWS))
    assert graphql(machine, RUNS, sweep=sweep)["project"]["sweep"]["state"] == "FINISHED"
