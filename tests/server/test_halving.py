"""Asynchronous successive halving on the server: who pauses, who goes on, where, and how a sweep ends."""

import json
from collections import Counter
from typing import Any

import pytest
import yaml
from server_bench import Bench, Box

from kto_sweep.server import dashboard_cells, dashboard_data
from kto_sweep.server.store import projects, runs, sweeps
from kto_sweep.server.sweep_rules import read_rules

GRID: dict[str, Any] = {
    "method": "grid",
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {"lr": {"values": [5, 3, 4, 1, 2, 6]}},
    "kto_sweep": {"asha": {"min_iter": 2, "eta": 3}},
}


def agent(bench: Bench, sweep: str, host: str = "box cpu") -> str:
    made = bench.mutate("createAgent", "CreateAgentInput", "agent { id }", host=host, sweep=sweep)
    return str(made["agent"]["id"])


def begin(bench: Bench, agent: str) -> tuple[str, int]:
    """The run that the agent is given, started, and its learning rate."""
    command = bench.beat(agent)[0]
    assert command["type"] in {"run", "resume"}, command
    resumed = command["type"] == "resume"
    bench.start_run(
        command["run_id"], **({"id": bench.run(command["run_id"], "id")["id"]} if resumed else {})
    )
    return command["run_id"], command["args"]["lr"]["value"]


def train(bench: Bench, agent: str, name: str, loss: float, until: int = 18) -> bool:
    """Log rows up to iteration `until`, or until the run is asked to stop; whether it was."""
    done = bench.run(name, "historyLineCount")["historyLineCount"]
    for row in range(done, until):
        if bench.log(name, row, {"loss": loss})["stopped"]:
            assert bench.beat(agent, name) == [{"type": "stop", "run_id": name}]
            bench.stream(name, complete=True, exitcode=1)
            return True
    bench.stream(name, complete=True, exitcode=0)
    return False


def shown(bench: Bench, name: str) -> tuple[list[str], Counter[str]]:
    """States on the dashboard: of the runs, and how many cells of the grid have which."""
    connection = bench.backend.database.reader()
    owner = projects.find(connection, None, None)
    assert owner
    sweep = sweeps.find(connection, owner.id, name)
    assert sweep
    rows = [dashboard_data.run_row(run)["state"] for run in runs.of_sweep(connection, sweep.id)]
    cells = dashboard_cells.cells(connection, owner, sweep, read_rules(sweep.config))
    assert cells
    return rows, Counter(cell["state"] for cell in cells)


def test_poor_runs_pause_and_the_best_goes_on_before_a_new_one_begins(bench: Bench) -> None:
    sweep = bench.sweep(GRID)
    one = agent(bench, sweep)
    names, order = {}, []
    while (commands := bench.beat(one))[0]["type"] != "exit":
        name, rate = begin(bench, one)
        assert name == commands[0]["run_id"]
        names[rate] = name
        order.append((commands[0]["type"], rate))
        train(bench, one, name, float(rate))
        if len(order) == 2:
            assert bench.run(name, "state sweepName") == {"state": "preempted", "sweepName": sweep}
            assert shown(bench, sweep) == (["paused", "paused"], {"paused": 2, "missing": 4})
    # Of 5, 3 and 4 the 3 goes on; 1 is one of the best as soon as it comes, 2 only with the 6 beside it. Then
    # nothing new is left, and the best of the two that got further goes to its end.
    assert order == [
        ("run", 5), ("run", 3), ("run", 4), ("resume", 3), ("run", 1), ("run", 2), ("run", 6), ("resume", 1),
        ("resume", 2),
    ]  # fmt: skip
    states = {rate: bench.run(name, "state historyLineCount") for rate, name in names.items()}
    assert {rate: each["historyLineCount"] for rate, each in states.items()} == {
        5: 2, 3: 6, 4: 2, 1: 18, 2: 6, 6: 2
    }  # fmt: skip
    assert [rate for rate, each in states.items() if each["state"] == "finished"] == [1]
    assert {each["state"] for rate, each in states.items() if rate != 1} == {"killed"}
    assert bench.sweep_field(sweep) == "FINISHED"


def test_an_idle_agent_waits_while_a_running_one_may_bring_another_on(bench: Bench) -> None:
    sweep = bench.sweep({**GRID, "run_cap": 3})
    one, two, three = (agent(bench, sweep) for _ in range(3))
    for loss in (5.0, 3.0):
        name, _ = begin(bench, one)
        assert train(bench, one, name, loss)
    last, _ = begin(bench, two)
    bench.beat(two, last)
    # Nothing new is left: the best so far goes on.
    best, rate = begin(bench, one)
    assert (rate, bench.beat(one, best)) == (3, [])
    assert bench.beat(three) == []
    assert not train(bench, one, best, 3.0)
    assert bench.beat(three) == []
    assert train(bench, two, last, 4.0)
    assert bench.beat(three) == [{"type": "exit"}]


def test_a_run_goes_on_where_its_checkpoint_is(bench: Bench) -> None:
    sweep = bench.sweep(GRID)
    here, there = agent(bench, sweep), agent(bench, sweep, "other gpu 0")
    for loss in (5.0, 3.0, 4.0):
        name, _ = begin(bench, here)
        assert train(bench, here, name, loss)
    taken = bench.beat(there)[0]
    assert taken["type"] == "run"  # a new one: the 3 is better left to the first agent
    bench.beat(there, taken["run_id"])
    (command,) = bench.beat(here)
    assert (command["type"], command["args"]["lr"]["value"]) == ("resume", 3)


def test_a_run_whose_host_is_gone_goes_on_elsewhere(bench: Bench) -> None:
    sweep = bench.sweep(GRID)
    here = agent(bench, sweep)
    for loss in (5.0, 3.0, 4.0):
        name, _ = begin(bench, here)
        assert train(bench, here, name, loss)
    bench.clock.time += 200
    (command,) = bench.beat(agent(bench, sweep, "other gpu 0"))
    assert (command["type"], command["args"]["lr"]["value"]) == ("resume", 3)


def pause_two(bench: Bench, config: dict[str, Any]) -> tuple[str, list[str], str]:
    sweep = bench.sweep(config)
    one = agent(bench, sweep)
    names = []
    for loss in (5.0, 3.0):
        name, _ = begin(bench, one)
        assert train(bench, one, name, loss)
        names.append(name)
    return sweep, names, one


@pytest.mark.parametrize("state", ["CANCELED", "FINISHED"])
def test_paused_runs_end_with_their_sweep(bench: Bench, state: str) -> None:
    sweep, names, one = pause_two(bench, GRID)
    last, _ = begin(bench, one)
    bench.log(last, 0, {"loss": 6.0}, {"loss": 6.0})
    bench.mutate(
        "upsertSweep", "UpsertSweepInput", "sweep { name }", id=bench.sweep_field(sweep, "id"), state=state
    )
    assert [bench.run(name)["state"] for name in names] == ["killed", "killed"]
    bench.stream(last, complete=True, exitcode=1)
    assert bench.run(last)["state"] == "killed"
    assert bench.beat(one) == [{"type": "exit"}]


def test_a_paused_run_that_a_person_stops_is_not_handed_out(bench: Bench) -> None:
    _, names, one = pause_two(bench, GRID)
    bench.mutate("stopRun", "StopRunInput", "success", id=bench.run(names[1], "id")["id"])
    assert bench.run(names[1])["state"] == "killed"
    name, _ = begin(bench, one)
    assert train(bench, one, name, 4.0)
    assert bench.beat(one)[0]["type"] == "run"


def test_a_run_that_fails_or_ends_at_its_band_has_not_paused(bench: Bench) -> None:
    sweep = bench.sweep(GRID)
    one = agent(bench, sweep)
    for code, state in ((1, "failed"), (0, "finished")):
        name, _ = begin(bench, one)
        content = [json.dumps({"_step": step, "loss": 1.0}) for step in range(2)]
        files = {"wandb-history.jsonl": {"offset": 0, "content": content}}
        bench.stream(name, files=files, complete=True, exitcode=code)
        assert bench.run(name)["state"] == state


def test_whoever_goes_on_with_a_run_that_is_to_pause_hears_of_it(bench: Bench) -> None:
    """Its agent died before it could stop; another of the box takes it over."""
    sweep = bench.sweep(GRID)
    one = agent(bench, sweep)
    name, _ = begin(bench, one)
    assert bench.log(name, 0, {"loss": 1.0}, {"loss": 1.0})["stopped"]
    two = agent(bench, sweep)
    bench.start_run(name, id=bench.run(name, "id")["id"])
    assert bench.beat(two, name) == [{"type": "stop", "run_id": name}]
    bench.stream(name, complete=True, exitcode=1)
    assert bench.run(name)["state"] == "preempted"


def test_a_run_that_fell_silent_while_it_was_to_pause_is_paused(bench: Bench) -> None:
    sweep = bench.sweep(GRID)
    one = agent(bench, sweep)
    name, _ = begin(bench, one)
    bench.log(name, 0, {"loss": 1.0}, {"loss": 1.0})
    bench.clock.time += 400
    bench.round()
    assert bench.run(name)["state"] == "preempted"


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
def test_asha_that_cannot_be_is_told_and_left_out(change: dict[str, Any], problem: str) -> None:
    rules = read_rules(yaml.safe_dump({**GRID, **change}))
    assert any(problem in each for each in rules.problems), rules.problems
    assert rules.options.asha is None


def test_the_real_sdk_pauses_and_goes_on(box: Box) -> None:
    """Two stock agents; a run that is resumed goes on with its next row."""
    sweep = box.sweep(GRID)
    code = """
def trial():
    with wandb.init() as run:
        for step in range(run.starting_step, 12):
            run.log({"loss": float(run.config.lr)}, step=step)
            time.sleep(0.5)
wandb.agent(sys.argv[1], function=trial, entity="acme", project="tests")
"""
    for each in [box.start(code, sweep) for _ in range(2)]:
        box.finish(each)
    read = """
sweep = wandb.Api().sweep("acme/tests/" + sys.argv[1])
tell([sweep.state, {run.config["lr"]: [run.state, [row["_step"] for row in run.scan_history()]]
                    for run in sweep.runs}])
"""
    state, runs = box.run(read, sweep)
    assert state == "FINISHED"
    assert set(runs) == set("123456")
    assert runs["1"] == ["finished", list(range(12))]
    for rate in "456":
        assert runs[rate][0] == "killed"
        assert len(runs[rate][1]) < 12
    assert all(rows == list(range(len(rows))) for _, rows in runs.values())
