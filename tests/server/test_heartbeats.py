"""Sweeps, agents and runs over time: which commands agents get."""

import json
from collections import Counter
from typing import Any

import pytest
from server_harness import GRID, RANDOM, ServerHarness

from kto_sweep.server import heartbeat, suggest
from kto_sweep.server.store.database import StoreUnavailable


def test_grid_gives_every_cell_once_in_order_then_exit(harness: ServerHarness) -> None:
    sweep = harness.sweep(GRID)
    agent = harness.agent(sweep)
    cells = []
    while (commands := harness.beat(agent))[0]["type"] == "run":
        assert commands[0]["program"] == "train.py"
        cells.append({name: entry["value"] for name, entry in commands[0]["args"].items()})
        harness.work(agent, commands[0])
    assert commands == [{"type": "exit"}]
    assert cells == [{"b": 1, "lr": 0.1}, {"b": 1, "lr": 0.2}, {"b": 2, "lr": 0.1}, {"b": 2, "lr": 0.2}]
    assert harness.sweep_field(sweep) == "FINISHED"
    assert harness.sweep_field(sweep, "runCountExpected") == 4


def test_a_full_disk_is_an_error_for_users_and_a_retry_for_runs(harness: ServerHarness) -> None:
    harness.sweep(GRID)
    database = harness.server.database
    pages = database.write(lambda c: c.execute("PRAGMA page_count").fetchone()[0])

    def fill() -> None:  # of a connection, and the writer has a new one after each failure
        database.write(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").fetchone())

    fill()
    long = {"description": "x" * 100_000}
    query = "mutation M($input: UpsertSweepInput!) { upsertSweep(input: $input) { sweep { id } } }"
    status, body = harness.execute(query, input={"config": json.dumps(GRID), **long})
    assert (status, "disk is full; nothing was changed" in body["errors"][0]["message"]) == (200, True)
    fill()
    with pytest.raises(StoreUnavailable, match="full"):
        harness.start_run("new", config=json.dumps(long))


def test_three_agents_share_a_grid_without_running_a_cell_twice(harness: ServerHarness) -> None:
    sweep = harness.sweep(GRID)
    agents = [harness.agent(sweep) for _ in range(3)]
    done: Counter[str] = Counter()
    while agents:
        for agent in list(agents):
            commands = harness.beat(agent)
            if commands and commands[0]["type"] == "exit":
                agents.remove(agent)
            elif commands:
                done[str(commands[0]["args"])] += 1
                harness.work(agent, commands[0])
    assert len(done) == 4
    assert set(done.values()) == {1}


def test_failed_cell_is_not_retried(harness: ServerHarness) -> None:
    agent = harness.agent(harness.sweep(GRID))
    first = harness.beat(agent)[0]
    harness.work(agent, first, exitcode=1)
    assert harness.run(first["run_id"])["state"] == "failed"
    assert harness.beat(agent)[0]["args"] != first["args"]


def test_cell_of_a_deleted_run_is_run_again(harness: ServerHarness) -> None:
    agent = harness.agent(harness.sweep(GRID))
    first = harness.beat(agent)[0]
    harness.work(agent, first)
    harness.mutate("deleteRun", "DeleteRunInput", "success", id=harness.run(first["run_id"], "id")["id"])
    assert harness.beat(agent)[0]["args"] == first["args"]


def test_agent_must_stop_a_deleted_run_before_it_gets_another(harness: ServerHarness) -> None:
    agent = harness.agent(harness.sweep(GRID))
    first = harness.beat(agent)[0]
    name = first["run_id"]
    harness.start_run(name)
    harness.mutate("deleteRun", "DeleteRunInput", "success", id=harness.run(name, "id")["id"])
    assert harness.beat(agent, name) == [{"type": "stop", "run_id": name}]
    harness.mutate(
        "upsertBucket", "UpsertBucketInput", "inserted", name=name, config="{}"
    )  # so does its process
    for _ in range(2):
        assert harness.beat(agent, name) == [{"type": "stop", "run_id": name}]
    again = harness.beat(agent)[0]
    assert (again["type"], again["args"]) == ("run", first["args"])
    assert again["run_id"] != name


def test_script_that_changes_its_config_does_not_change_its_cell(harness: ServerHarness) -> None:
    agent = harness.agent(harness.sweep(GRID))
    first = harness.beat(agent)[0]
    harness.start_run(first["run_id"], config='{"lr": {"value": 99}, "b": {"value": 99}}')
    harness.stream(first["run_id"], complete=True)
    assert harness.beat(agent)[0]["args"] != first["args"]


def test_manually_added_run_counts_as_its_cell(harness: ServerHarness) -> None:
    sweep = harness.sweep(GRID)
    harness.start_run("byhand", sweep=sweep, config='{"lr": {"value": 0.1}, "b": {"value": 1.0}}')
    agent = harness.agent(sweep)
    assert harness.beat(agent)[0]["args"] == {"b": {"value": 1}, "lr": {"value": 0.2}}


def test_neither_run_nor_exit_while_the_agent_has_a_run(harness: ServerHarness) -> None:
    agent = harness.agent(harness.sweep({**GRID, "run_cap": 1}))
    name = harness.beat(agent)[0]["run_id"]
    harness.start_run(name)
    assert harness.beat(agent, name) == []
    harness.stream(name, complete=True)
    assert harness.beat(agent, name) == []
    assert harness.beat(agent) == [{"type": "exit"}]


def test_lost_command_is_sent_again(harness: ServerHarness) -> None:
    agent = harness.agent(harness.sweep(GRID))
    assert harness.beat(agent) == harness.beat(agent)


def test_run_that_dies_before_wandb_init_three_times_fails(harness: ServerHarness) -> None:
    agent = harness.agent(harness.sweep(GRID))
    names = [harness.beat(agent)[0]["run_id"] for _ in range(4)]
    assert names[0] == names[1] == names[2] != names[3]
    assert harness.run(names[0])["state"] == "failed"


def test_reported_run_that_ends_without_wandb_init_fails(harness: ServerHarness) -> None:
    agent = harness.agent(harness.sweep(GRID))
    name = harness.beat(agent)[0]["run_id"]
    harness.beat(agent, name)
    assert harness.beat(agent)[0]["run_id"] != name
    assert harness.run(name)["state"] == "failed"


def test_run_cap_counts_failed_runs_and_those_of_all_agents(harness: ServerHarness) -> None:
    sweep = harness.sweep({**RANDOM, "run_cap": 3})
    one, two = harness.agent(sweep), harness.agent(sweep)
    for agent, exitcode in ((one, 0), (two, 1), (one, 0)):
        harness.work(agent, harness.beat(agent)[0], exitcode)
    assert harness.sweep_field(sweep) == "FINISHED"
    assert harness.beat(one) == harness.beat(two) == [{"type": "exit"}]
    assert harness.sweep_field(sweep, "runCount") == 3


def test_sweep_finishes_with_its_last_run_without_another_heartbeat(harness: ServerHarness) -> None:
    sweep = harness.sweep({**RANDOM, "run_cap": 1})
    agent = harness.agent(sweep)
    name = harness.beat(agent)[0]["run_id"]
    harness.start_run(name)
    assert harness.sweep_field(sweep) == "RUNNING"
    harness.stream(name, complete=True)
    assert harness.sweep_field(sweep) == "FINISHED"


def test_target_reached_finishes_the_sweep_and_lets_running_runs_finish(harness: ServerHarness) -> None:
    sweep = harness.sweep({**RANDOM, "metric": {"name": "loss", "goal": "minimize", "target": 0.5}})
    one, two = harness.agent(sweep), harness.agent(sweep)
    good, other = harness.beat(one)[0]["run_id"], harness.beat(two)[0]["run_id"]
    harness.start_run(good)
    harness.start_run(other)
    harness.log(good, 0, {"loss": 0.9}, {"loss": "NaN"}, {"loss": 0.51})
    assert harness.sweep_field(sweep) == "RUNNING"
    harness.log(good, 3, {"loss": 0.5})
    assert harness.sweep_field(sweep) == "FINISHED"
    assert harness.beat(two, other) == []
    assert harness.run(other)["state"] == "running"
    assert harness.beat(one) == [{"type": "exit"}]


def test_stop_is_repeated_until_the_run_is_unreported_and_killed(harness: ServerHarness) -> None:
    agent = harness.agent(harness.sweep(RANDOM))
    name = harness.beat(agent)[0]["run_id"]
    harness.start_run(name)
    harness.beat(agent, name)
    harness.mutate("stopRun", "StopRunInput", "success", id=harness.run(name, "id")["id"])
    assert harness.stream(name)["stopped"] is True
    for _ in range(3):
        assert harness.beat(agent, name) == [{"type": "stop", "run_id": name}]
    assert harness.beat(agent)[0]["type"] == "run"
    assert harness.run(name)["state"] == "killed"


def test_stopped_run_that_ends_by_itself_is_killed_by_its_exit_code(harness: ServerHarness) -> None:
    agent = harness.agent(harness.sweep(RANDOM))
    name = harness.beat(agent)[0]["run_id"]
    harness.start_run(name)
    harness.mutate("stopRun", "StopRunInput", "success", id=harness.run(name, "id")["id"])
    harness.stream(name, complete=True, exitcode=1)
    assert harness.run(name, "state exitcode") == {"state": "killed", "exitcode": 1}


def set_state(harness: ServerHarness, sweep: str, state: str) -> None:
    opaque = harness.sweep_field(sweep, "id")
    harness.mutate("upsertSweep", "UpsertSweepInput", "sweep { state }", id=opaque, state=state)


def test_paused_sweep_lets_runs_finish_and_assigns_none_until_resumed(harness: ServerHarness) -> None:
    sweep = harness.sweep(GRID)
    agent = harness.agent(sweep)
    first = harness.beat(agent)[0]
    set_state(harness, sweep, "PAUSED")
    harness.work(agent, first)
    assert harness.beat(agent) == []
    set_state(harness, sweep, "RUNNING")
    assert harness.beat(agent)[0]["type"] == "run"


def test_canceled_sweep_stops_its_runs_then_its_agents_exit(harness: ServerHarness) -> None:
    sweep = harness.sweep(GRID)
    one, two = harness.agent(sweep), harness.agent(sweep)
    running, waiting = harness.beat(one)[0]["run_id"], harness.beat(two)[0]["run_id"]
    harness.start_run(running)
    harness.beat(one, running)
    set_state(harness, sweep, "CANCELED")
    assert harness.run(waiting)["state"] == "killed"
    assert harness.stream(running)["stopped"] is True
    assert harness.beat(one, running) == [{"type": "stop", "run_id": running}]
    assert harness.beat(one) == harness.beat(two) == [{"type": "exit"}]


def test_run_whose_process_starts_after_the_cancel_is_stopped_too(harness: ServerHarness) -> None:
    sweep = harness.sweep(GRID)
    agent = harness.agent(sweep)
    name = harness.beat(agent)[0]["run_id"]
    set_state(harness, sweep, "CANCELED")
    harness.start_run(name)
    assert harness.stream(name)["stopped"] is True
    assert harness.beat(agent, name) == [{"type": "stop", "run_id": name}]
    harness.stream(name, complete=True, exitcode=143)
    assert harness.run(name)["state"] == "killed"


def test_killed_run_that_is_restarted_manually_is_not_stopped_again(harness: ServerHarness) -> None:
    opaque = harness.start_run("r")["bucket"]["id"]
    harness.mutate("stopRun", "StopRunInput", "success", id=opaque)
    harness.stream("r", complete=True, exitcode=1)
    harness.start_run("r", id=opaque)
    assert harness.stream("r")["stopped"] is False


def test_stopped_sweep_lets_runs_finish(harness: ServerHarness) -> None:
    sweep = harness.sweep(GRID)
    agent = harness.agent(sweep)
    name = harness.beat(agent)[0]["run_id"]
    harness.start_run(name)
    set_state(harness, sweep, "FINISHED")
    assert harness.beat(agent, name) == []
    assert harness.stream(name)["stopped"] is False
    harness.stream(name, complete=True)
    assert harness.beat(agent) == [{"type": "exit"}]


def test_heartbeat_of_an_unknown_agent_is_not_found(harness: ServerHarness) -> None:
    query = 'mutation { agentHeartbeat(input: {id: "QWdlbnQ6djE6OTk="}) { commands } }'
    assert harness.execute(query)[0] == 404


def test_agent_for_an_unknown_sweep_is_not_found(harness: ServerHarness) -> None:
    query = 'mutation { createAgent(input: {host: "box", sweep: "nosuch"}) { agent { id } } }'
    assert harness.execute(query)[0] == 404


def test_scheduler_queue_is_assigned_in_order_up_to_the_cap(harness: ServerHarness) -> None:
    config = {"method": "custom", "run_cap": 2, "scheduler": {"engine": "optuna"}, "metric": {"name": "loss"}}
    sweep = harness.sweep(config)
    assert harness.run(harness.sweep_field(sweep, "controllerRunName"))["state"] == "pending"
    agent, opaque = harness.agent(sweep), harness.sweep_field(sweep, "id")
    assert harness.beat(agent) == []
    for value in (1, 2, 3):
        harness.mutate(
            "enqueueSweepRun",
            "EnqueueSweepRunInput",
            "id",
            id=opaque,
            config=f'{{"x": {{"value": {value}}}}}',
        )
    for value in (1, 2):
        command = harness.beat(agent)[0]
        assert command["args"] == {"x": {"value": value}}
        harness.work(agent, command)
    assert harness.beat(agent) == []
    set_state(harness, sweep, "FINISHED")
    assert harness.beat(agent) == [{"type": "exit"}]
    query = "query($f: JSONString) { project { runCount(filters: $f) } }"
    assert harness.query(query, f='{"state": "killed"}')["project"]["runCount"] == 1


def test_hyperband_stops_the_worst_as_soon_as_its_row_arrives(harness: ServerHarness) -> None:
    rule = {"type": "hyperband", "min_iter": 3, "eta": 2}
    sweep = harness.sweep({**RANDOM, "early_terminate": rule})
    agents = [harness.agent(sweep) for _ in range(4)]
    names = [harness.beat(agent)[0]["run_id"] for agent in agents]
    for name in names:
        harness.start_run(name)
    stopped = []
    for level, name in enumerate(names):
        rows = [{"loss": float(level)}, {"other": 1}, {"loss": float("nan")}, {"loss": 1.0 * level}]
        harness.log(name, 0, *rows)
        stopped.append(harness.log(name, 4, {"loss": float(level)})["stopped"])
    # eta 2: of one, two, three, four values the threshold is the best, 2nd, 2nd, 3rd best.
    assert stopped == [False, False, True, True]
    assert harness.beat(agents[3], names[3]) == [{"type": "stop", "run_id": names[3]}]
    assert harness.beat(agents[0], names[0]) == []


def test_changed_sweep_config_applies_to_what_was_logged_before(harness: ServerHarness) -> None:
    sweep = harness.sweep(RANDOM)
    agent = harness.agent(sweep)
    name = harness.beat(agent)[0]["run_id"]
    harness.start_run(name)
    harness.log(name, 0, {"loss": 3.0, "acc": 0.5}, {"loss": 2.0, "acc": 0.75})
    assert harness.sweep_field(sweep, "bestLoss") == 2.0
    changed = {**RANDOM, "metric": {"name": "acc", "goal": "maximize"}}
    opaque = harness.sweep_field(sweep, "id")
    harness.mutate("upsertSweep", "UpsertSweepInput", "sweep { id }", id=opaque, config=json.dumps(changed))
    assert harness.sweep_field(sweep, "bestLoss") == 0.75


def test_agent_gets_no_command_while_another_agents_search_is_slow(
    harness: ServerHarness,
) -> None:
    sweep = harness.sweep(RANDOM)
    working, free = harness.agent(sweep), harness.agent(sweep)
    name = harness.beat(working)[0]["run_id"]
    harness.start_run(name)
    with harness.server.locks.of(1):
        assert harness.beat(working, name) == []
        assert harness.beat(free) == []
    assert harness.beat(free)[0]["type"] == "run"


def test_changed_grid_continues_with_untried_cells(harness: ServerHarness) -> None:
    sweep = harness.sweep(GRID)
    agent = harness.agent(sweep)
    for _ in range(3):
        harness.work(agent, harness.beat(agent)[0])
    larger = {**GRID, "parameters": {"lr": {"values": [0.1, 0.2]}, "b": {"values": [0, 1, 2]}}}
    opaque = harness.sweep_field(sweep, "id")
    harness.mutate("upsertSweep", "UpsertSweepInput", "sweep { id }", id=opaque, config=json.dumps(larger))
    cells = []
    while (command := harness.beat(agent)[0])["type"] == "run":
        cells.append({name: entry["value"] for name, entry in command["args"].items()})
        harness.work(agent, command)
    assert cells == [{"b": 0, "lr": 0.1}, {"b": 0, "lr": 0.2}, {"b": 2, "lr": 0.2}]
    assert harness.sweep_field(sweep) == "FINISHED"


def test_sweep_canceled_during_its_search_starts_no_run(
    harness: ServerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = harness.sweep(RANDOM)
    agent = harness.agent(sweep)

    def canceled_meanwhile(*args: Any) -> Any:
        suggestion = suggest.suggest(*args)
        set_state(harness, sweep, "CANCELED")
        return suggestion

    monkeypatch.setattr(heartbeat, "suggest", canceled_meanwhile)
    assert harness.beat(agent) == []
    assert harness.sweep_field(sweep, "runCount") == 0
    assert harness.beat(agent) == [{"type": "exit"}]


def make_pending(harness: ServerHarness, name: str) -> None:
    run_id = harness.run(name, "id")["id"]
    harness.mutate("updateRunState", "UpdateRunStateInput", "success", id=run_id, state="pending")


def test_ended_run_set_to_pending_is_assigned_again_and_restarts(harness: ServerHarness) -> None:
    sweep = harness.sweep({**GRID, "run_cap": 2})
    agent = harness.agent(sweep)
    failed = harness.beat(agent)[0]
    harness.start_run(failed["run_id"])
    harness.log(failed["run_id"], 0, {"loss": 1.0, "_timestamp": 1.0}, {"loss": 2.0, "_timestamp": 2.0})
    harness.stream(failed["run_id"], complete=True, exitcode=1)
    harness.work(agent, harness.beat(agent)[0])
    assert harness.beat(agent) == [{"type": "exit"}]
    assert harness.sweep_field(sweep) == "FINISHED"

    make_pending(harness, failed["run_id"])
    assert harness.sweep_field(sweep) == "FINISHED"
    opaque = harness.sweep_field(sweep, "id")
    harness.mutate("upsertSweep", "UpsertSweepInput", "sweep { state }", id=opaque, state="RUNNING")
    other = harness.agent(sweep)
    again = harness.beat(other)[0]
    assert (again["run_id"], again["args"]) == (failed["run_id"], failed["args"])
    started = harness.start_run(failed["run_id"])["bucket"]
    assert (started["state"], started["historyLineCount"]) == ("running", 0)
    harness.log(failed["run_id"], 0, {"loss": 3.0, "_timestamp": 3.0})
    harness.stream(failed["run_id"], complete=True, exitcode=0)
    assert harness.run(failed["run_id"], "state historyLineCount") == {
        "state": "finished",
        "historyLineCount": 1,
    }
    assert harness.beat(other) == [{"type": "exit"}]
    assert harness.sweep_field(sweep) == "FINISHED"


def test_prior_runs_of_another_sweep_count_for_both(harness: ServerHarness) -> None:
    first = harness.sweep(GRID)
    agent = harness.agent(first)
    done = harness.beat(agent)[0]
    harness.work(agent, done)
    running = harness.beat(agent)[0]["run_id"]
    prior = json.dumps({"$or": [{"name": done["run_id"]}, {"name": running}]})
    second = harness.mutate(
        "upsertSweep", "UpsertSweepInput", "sweep { name }", config=json.dumps(GRID), priorRunsFilters=prior
    )["sweep"]["name"]
    query = "query($f: JSONString) { project { runs(filters: $f) { edges { node { name } } } } }"
    for sweep, count in ((first, 2), (second, 1)):
        edges = harness.query(query, f=json.dumps({"sweep": sweep}))["project"]["runs"]["edges"]
        assert [edge["node"]["name"] for edge in edges] == [done["run_id"], running][:count]
        assert harness.sweep_field(sweep, "runCount") == count
    other = harness.agent(second)
    cells = []
    while (command := harness.beat(other)[0])["type"] == "run":
        cells.append(command["args"])
        harness.work(other, command)
    assert len(cells) == 3
    assert done["args"] not in cells
