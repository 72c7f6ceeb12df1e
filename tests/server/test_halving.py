"""Successive halving on the server: which runs pause, which are promoted, where, and how a sweep ends."""

import json
from collections import Counter
from typing import Any

import pytest
import yaml
from machine import Machine
from sdk_scripts import run_script, script_results, start_script, upsert_sweep
from server_harness import ServerHarness

from kto_sweep.server import dashboard_cells, dashboard_data
from kto_sweep.server.store import projects, runs, sweeps
from kto_sweep.server.sweep_rules import read_rules
from kto_sweep.server.sweep_view import sweep_view
from kto_sweep.sweep.sweep_state import read_sweep_status

GRID: dict[str, Any] = {
    "method": "grid",
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {"lr": {"values": [5, 3, 4, 1, 2, 6]}},
    "kto_sweep": {"asha": {"min_iter": 2, "eta": 3}},
}


def agent(harness: ServerHarness, sweep: str, host: str = "box cpu") -> str:
    made = harness.mutate("createAgent", "CreateAgentInput", "agent { id }", host=host, sweep=sweep)
    return str(made["agent"]["id"])


def begin(harness: ServerHarness, agent: str) -> tuple[str, int]:
    """Starts the agent's next run; its name and learning rate."""
    command = harness.beat(agent)[0]
    assert command["type"] in {"run", "resume"}, command
    resumed = command["type"] == "resume"
    harness.start_run(
        command["run_id"], **({"id": harness.run(command["run_id"], "id")["id"]} if resumed else {})
    )
    return command["run_id"], command["args"]["lr"]["value"]


def train(harness: ServerHarness, agent: str, name: str, loss: float, until: int = 18) -> bool:
    """Logs rows up to iteration `until`, or until a stop request; whether there was one."""
    done = harness.run(name, "historyLineCount")["historyLineCount"]
    for row in range(done, until):
        if harness.log(name, row, {"loss": loss})["stopped"]:
            assert harness.beat(agent, name) == [{"type": "stop", "run_id": name}]
            harness.stream(name, complete=True, exitcode=1)
            return True
    harness.stream(name, complete=True, exitcode=0)
    return False


def shown(harness: ServerHarness, name: str) -> tuple[list[str], Counter[str]]:
    """States on the dashboard: of the runs, and counts of the grid's cells by state."""
    connection = harness.server.database.reader()
    owner = projects.find(connection, None, None)
    assert owner
    sweep = sweeps.find(connection, owner.id, name)
    assert sweep
    rows = [dashboard_data.run_row(run)["state"] for run in runs.of_sweep(connection, sweep.id)]
    cells = dashboard_cells.cells(read_sweep_status(sweep_view(connection, harness.server, sweep)))
    assert cells
    return rows, Counter(cell["state"] for cell in cells)


def test_poor_runs_pause_and_the_best_is_promoted_before_a_new_one_starts(harness: ServerHarness) -> None:
    sweep = harness.sweep(GRID)
    one = agent(harness, sweep)
    names, order = {}, []
    while (commands := harness.beat(one))[0]["type"] != "exit":
        name, rate = begin(harness, one)
        assert name == commands[0]["run_id"]
        names[rate] = name
        order.append((commands[0]["type"], rate))
        train(harness, one, name, float(rate))
        if len(order) == 2:
            assert harness.run(name, "state sweepName") == {"state": "preempted", "sweepName": sweep}
            assert shown(harness, sweep) == (["paused", "paused"], {"paused": 2, "not started": 4})
    # Of 5, 3 and 4 the 3 is promoted; 1 is among the best at once, 2 only after 6 arrives. Then the grid is
    # exhausted, and the better of the two promoted runs trains to its end.
    assert order == [
        ("run", 5), ("run", 3), ("run", 4), ("resume", 3), ("run", 1), ("run", 2), ("run", 6), ("resume", 1),
        ("resume", 2),
    ]  # fmt: skip
    states = {rate: harness.run(name, "state historyLineCount") for rate, name in names.items()}
    assert {rate: each["historyLineCount"] for rate, each in states.items()} == {
        5: 2, 3: 6, 4: 2, 1: 18, 2: 6, 6: 2
    }  # fmt: skip
    assert [rate for rate, each in states.items() if each["state"] == "finished"] == [1]
    assert {each["state"] for rate, each in states.items() if rate != 1} == {"killed"}
    assert harness.sweep_field(sweep) == "FINISHED"


def test_an_idle_agent_waits_while_a_running_run_may_promote_another(harness: ServerHarness) -> None:
    sweep = harness.sweep({**GRID, "run_cap": 3})
    one, two, three = (agent(harness, sweep) for _ in range(3))
    for loss in (5.0, 3.0):
        name, _ = begin(harness, one)
        assert train(harness, one, name, loss)
    last, _ = begin(harness, two)
    harness.beat(two, last)
    # The grid is exhausted: the best so far is promoted.
    best, rate = begin(harness, one)
    assert (rate, harness.beat(one, best)) == (3, [])
    assert harness.beat(three) == []
    assert not train(harness, one, best, 3.0)
    assert harness.beat(three) == []
    assert train(harness, two, last, 4.0)
    assert harness.beat(three) == [{"type": "exit"}]


def test_a_run_resumes_on_the_host_of_its_checkpoint(harness: ServerHarness) -> None:
    sweep = harness.sweep(GRID)
    local, remote = agent(harness, sweep), agent(harness, sweep, "other gpu 0")
    for loss in (5.0, 3.0, 4.0):
        name, _ = begin(harness, local)
        assert train(harness, local, name, loss)
    taken = harness.beat(remote)[0]
    assert taken["type"] == "run"  # a new one: the 3 is better left to the first agent
    harness.beat(remote, taken["run_id"])
    (command,) = harness.beat(local)
    assert (command["type"], command["args"]["lr"]["value"]) == ("resume", 3)


def test_a_run_whose_host_is_offline_resumes_elsewhere(harness: ServerHarness) -> None:
    sweep = harness.sweep(GRID)
    local = agent(harness, sweep)
    for loss in (5.0, 3.0, 4.0):
        name, _ = begin(harness, local)
        assert train(harness, local, name, loss)
    harness.clock.time += 200
    (command,) = harness.beat(agent(harness, sweep, "other gpu 0"))
    assert (command["type"], command["args"]["lr"]["value"]) == ("resume", 3)


def pause_two(harness: ServerHarness, config: dict[str, Any]) -> tuple[str, list[str], str]:
    sweep = harness.sweep(config)
    one = agent(harness, sweep)
    names = []
    for loss in (5.0, 3.0):
        name, _ = begin(harness, one)
        assert train(harness, one, name, loss)
        names.append(name)
    return sweep, names, one


@pytest.mark.parametrize("state", ["CANCELED", "FINISHED"])
def test_paused_runs_end_with_their_sweep(harness: ServerHarness, state: str) -> None:
    sweep, names, one = pause_two(harness, GRID)
    last, _ = begin(harness, one)
    harness.log(last, 0, {"loss": 6.0}, {"loss": 6.0})
    harness.mutate(
        "upsertSweep", "UpsertSweepInput", "sweep { name }", id=harness.sweep_field(sweep, "id"), state=state
    )
    assert [harness.run(name)["state"] for name in names] == ["killed", "killed"]
    harness.stream(last, complete=True, exitcode=1)
    assert harness.run(last)["state"] == "killed"
    assert harness.beat(one) == [{"type": "exit"}]


def test_a_paused_run_that_is_stopped_is_not_assigned(harness: ServerHarness) -> None:
    _, names, one = pause_two(harness, GRID)
    harness.mutate("stopRun", "StopRunInput", "success", id=harness.run(names[1], "id")["id"])
    assert harness.run(names[1])["state"] == "killed"
    name, _ = begin(harness, one)
    assert train(harness, one, name, 4.0)
    assert harness.beat(one)[0]["type"] == "run"


def test_a_run_that_fails_or_ends_at_its_band_is_not_paused(harness: ServerHarness) -> None:
    sweep = harness.sweep(GRID)
    one = agent(harness, sweep)
    for code, state in ((1, "failed"), (0, "finished")):
        name, _ = begin(harness, one)
        content = [json.dumps({"_step": step, "loss": 1.0}) for step in range(2)]
        files = {"wandb-history.jsonl": {"offset": 0, "content": content}}
        harness.stream(name, files=files, complete=True, exitcode=code)
        assert harness.run(name)["state"] == state


def test_the_next_agent_of_a_pausing_run_is_told_to_stop_it(harness: ServerHarness) -> None:
    """Its agent died before it could stop the run; another agent on the host takes it over."""
    sweep = harness.sweep(GRID)
    one = agent(harness, sweep)
    name, _ = begin(harness, one)
    assert harness.log(name, 0, {"loss": 1.0}, {"loss": 1.0})["stopped"]
    two = agent(harness, sweep)
    harness.start_run(name, id=harness.run(name, "id")["id"])
    assert harness.beat(two, name) == [{"type": "stop", "run_id": name}]
    harness.stream(name, complete=True, exitcode=1)
    assert harness.run(name)["state"] == "preempted"


def test_a_run_that_goes_silent_while_pausing_is_paused(harness: ServerHarness) -> None:
    sweep = harness.sweep(GRID)
    one = agent(harness, sweep)
    name, _ = begin(harness, one)
    harness.log(name, 0, {"loss": 1.0}, {"loss": 1.0})
    harness.clock.time += 400
    harness.run_maintenance()
    assert harness.run(name)["state"] == "preempted"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kto_sweep": {"asha": 3}}, "kto_sweep.asha: needs min_iter"),
        ({"kto_sweep": {"asha": {"min_iter": "x"}}}, "kto_sweep.asha.min_iter is 'x'"),
        ({"kto_sweep": {"asha": {"min_iter": 1, "b": 2}}}, "kto_sweep.asha.b: the keys are"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1}}, "combined with early_terminate or"),
        ({"metric": None}, "needs a metric"),
    ],
)
def test_invalid_asha_options_are_reported_and_ignored(change: dict[str, Any], problem: str) -> None:
    rules = read_rules(yaml.safe_dump({**GRID, **change}))
    assert any(problem in each for each in rules.problems), rules.problems
    assert rules.options.asha is None


@pytest.mark.slow  # the others of this file have the same by requests
def test_the_real_sdk_pauses_and_resumes(machine: Machine) -> None:
    """Two wandb agents; a resumed run continues with its next row."""
    sweep = upsert_sweep(machine, GRID)
    code = """
def trial():
    with wandb.init() as run:
        for step in range(run.starting_step, 12):
            run.log({"loss": float(run.config.lr)}, step=step)
            time.sleep(0.5)
wandb.agent(sys.argv[1], function=trial, entity="acme", project="tests")
"""
    for each in [start_script(machine, code, sweep) for _ in range(2)]:
        script_results(each)
    read = """
sweep = wandb.Api().sweep("acme/tests/" + sys.argv[1])
report([sweep.state, {run.config["lr"]: [run.state, [row["_step"] for row in run.scan_history()]]
                    for run in sweep.runs}])
"""
    state, runs = run_script(machine, read, sweep)
    assert state == "FINISHED"
    assert set(runs) == set("123456")
    assert runs["1"] == ["finished", list(range(12))]
    for rate in "456":
        assert runs[rate][0] == "killed"
        assert len(runs[rate][1]) < 12
    assert all(rows == list(range(len(rows))) for _, rows in runs.values())
