"""Sweeps, agents and runs over time: who is told what."""

import json
from collections import Counter
from typing import Any

import pytest
from server_bench import GRID, RANDOM, Bench

from kto_sweep.server import heartbeat, suggest
from kto_sweep.server.store.database import StoreUnavailable


def test_grid_gives_every_cell_once_in_order_then_exit(bench: Bench) -> None:
    sweep = bench.sweep(GRID)
    agent = bench.agent(sweep)
    cells = []
    while (commands := bench.beat(agent))[0]["type"] == "run":
        assert commands[0]["program"] == "train.py"
        cells.append({name: entry["value"] for name, entry in commands[0]["args"].items()})
        bench.work(agent, commands[0])
    assert commands == [{"type": "exit"}]
    assert cells == [{"b": 1, "lr": 0.1}, {"b": 1, "lr": 0.2}, {"b": 2, "lr": 0.1}, {"b": 2, "lr": 0.2}]
    assert bench.sweep_field(sweep) == "FINISHED"
    assert bench.sweep_field(sweep, "runCountExpected") == 4


def test_a_person_hears_of_a_full_disk_at_once_where_a_run_tries_again(bench: Bench) -> None:
    bench.sweep(GRID)
    database = bench.backend.database
    pages = database.write(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    database.write(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").fetchone())
    long = {"description": "x" * 100_000}
    query = "mutation M($input: UpsertSweepInput!) { upsertSweep(input: $input) { sweep { id } } }"
    status, body = bench.answer(query, input={"config": json.dumps(GRID), **long})
    assert (status, "disk is full; nothing was changed" in body["errors"][0]["message"]) == (200, True)
    with pytest.raises(StoreUnavailable, match="full"):
        bench.start_run("new", config=json.dumps(long))


def test_three_agents_share_a_grid_without_doing_a_cell_twice(bench: Bench) -> None:
    sweep = bench.sweep(GRID)
    agents = [bench.agent(sweep) for _ in range(3)]
    done: Counter[str] = Counter()
    while agents:
        for agent in list(agents):
            commands = bench.beat(agent)
            if commands and commands[0]["type"] == "exit":
                agents.remove(agent)
            elif commands:
                done[str(commands[0]["args"])] += 1
                bench.work(agent, commands[0])
    assert len(done) == 4
    assert set(done.values()) == {1}


def test_failed_cell_is_not_tried_again(bench: Bench) -> None:
    agent = bench.agent(bench.sweep(GRID))
    first = bench.beat(agent)[0]
    bench.work(agent, first, exitcode=1)
    assert bench.run(first["run_id"])["state"] == "failed"
    assert bench.beat(agent)[0]["args"] != first["args"]


def test_cell_of_a_deleted_run_is_tried_again(bench: Bench) -> None:
    agent = bench.agent(bench.sweep(GRID))
    first = bench.beat(agent)[0]
    bench.work(agent, first)
    bench.mutate("deleteRun", "DeleteRunInput", "success", id=bench.run(first["run_id"], "id")["id"])
    assert bench.beat(agent)[0]["args"] == first["args"]


def test_agent_whose_run_was_deleted_is_told_to_end_it_before_it_gets_another(bench: Bench) -> None:
    agent = bench.agent(bench.sweep(GRID))
    first = bench.beat(agent)[0]
    name = first["run_id"]
    bench.start_run(name)
    bench.mutate("deleteRun", "DeleteRunInput", "success", id=bench.run(name, "id")["id"])
    assert bench.beat(agent, name) == [{"type": "stop", "run_id": name}]
    bench.mutate(
        "upsertBucket", "UpsertBucketInput", "inserted", name=name, config="{}"
    )  # so does its process
    for _ in range(2):
        assert bench.beat(agent, name) == [{"type": "stop", "run_id": name}]
    again = bench.beat(agent)[0]
    assert (again["type"], again["args"]) == ("run", first["args"])
    assert again["run_id"] != name


def test_script_that_changes_its_config_does_not_change_its_cell(bench: Bench) -> None:
    agent = bench.agent(bench.sweep(GRID))
    first = bench.beat(agent)[0]
    bench.start_run(first["run_id"], config='{"lr": {"value": 99}, "b": {"value": 99}}')
    bench.stream(first["run_id"], complete=True)
    assert bench.beat(agent)[0]["args"] != first["args"]


def test_run_attached_by_hand_counts_as_its_cell(bench: Bench) -> None:
    sweep = bench.sweep(GRID)
    bench.start_run("byhand", sweep=sweep, config='{"lr": {"value": 0.1}, "b": {"value": 1.0}}')
    agent = bench.agent(sweep)
    assert bench.beat(agent)[0]["args"] == {"b": {"value": 1}, "lr": {"value": 0.2}}


def test_neither_run_nor_exit_while_the_agent_has_a_run(bench: Bench) -> None:
    agent = bench.agent(bench.sweep({**GRID, "run_cap": 1}))
    name = bench.beat(agent)[0]["run_id"]
    bench.start_run(name)
    assert bench.beat(agent, name) == []
    bench.stream(name, complete=True)
    assert bench.beat(agent, name) == []
    assert bench.beat(agent) == [{"type": "exit"}]


def test_answer_that_was_lost_is_given_again(bench: Bench) -> None:
    agent = bench.agent(bench.sweep(GRID))
    assert bench.beat(agent) == bench.beat(agent)


def test_run_that_dies_before_wandb_init_three_times_is_given_up(bench: Bench) -> None:
    agent = bench.agent(bench.sweep(GRID))
    names = [bench.beat(agent)[0]["run_id"] for _ in range(4)]
    assert names[0] == names[1] == names[2] != names[3]
    assert bench.run(names[0])["state"] == "failed"


def test_run_that_was_picked_up_and_left_without_wandb_init_has_failed(bench: Bench) -> None:
    agent = bench.agent(bench.sweep(GRID))
    name = bench.beat(agent)[0]["run_id"]
    bench.beat(agent, name)
    assert bench.beat(agent)[0]["run_id"] != name
    assert bench.run(name)["state"] == "failed"


def test_run_cap_counts_failed_runs_and_those_of_all_agents(bench: Bench) -> None:
    sweep = bench.sweep({**RANDOM, "run_cap": 3})
    one, two = bench.agent(sweep), bench.agent(sweep)
    for agent, exitcode in ((one, 0), (two, 1), (one, 0)):
        bench.work(agent, bench.beat(agent)[0], exitcode)
    assert bench.sweep_field(sweep) == "FINISHED"
    assert bench.beat(one) == bench.beat(two) == [{"type": "exit"}]
    assert bench.sweep_field(sweep, "runCount") == 3


def test_sweep_ends_with_its_last_run_even_if_no_agent_asks_again(bench: Bench) -> None:
    sweep = bench.sweep({**RANDOM, "run_cap": 1})
    agent = bench.agent(sweep)
    name = bench.beat(agent)[0]["run_id"]
    bench.start_run(name)
    assert bench.sweep_field(sweep) == "RUNNING"
    bench.stream(name, complete=True)
    assert bench.sweep_field(sweep) == "FINISHED"


def test_target_reached_finishes_the_sweep_and_lets_others_end(bench: Bench) -> None:
    sweep = bench.sweep({**RANDOM, "metric": {"name": "loss", "goal": "minimize", "target": 0.5}})
    one, two = bench.agent(sweep), bench.agent(sweep)
    good, other = bench.beat(one)[0]["run_id"], bench.beat(two)[0]["run_id"]
    bench.start_run(good)
    bench.start_run(other)
    bench.log(good, 0, {"loss": 0.9}, {"loss": "NaN"}, {"loss": 0.51})
    assert bench.sweep_field(sweep) == "RUNNING"
    bench.log(good, 3, {"loss": 0.5})
    assert bench.sweep_field(sweep) == "FINISHED"
    assert bench.beat(two, other) == []
    assert bench.run(other)["state"] == "running"
    assert bench.beat(one) == [{"type": "exit"}]


def test_stop_is_repeated_until_the_run_leaves_which_is_then_killed(bench: Bench) -> None:
    agent = bench.agent(bench.sweep(RANDOM))
    name = bench.beat(agent)[0]["run_id"]
    bench.start_run(name)
    bench.beat(agent, name)
    bench.mutate("stopRun", "StopRunInput", "success", id=bench.run(name, "id")["id"])
    assert bench.stream(name)["stopped"] is True
    for _ in range(3):
        assert bench.beat(agent, name) == [{"type": "stop", "run_id": name}]
    assert bench.beat(agent)[0]["type"] == "run"
    assert bench.run(name)["state"] == "killed"


def test_stopped_run_that_ends_by_itself_is_killed_by_its_exit_code(bench: Bench) -> None:
    agent = bench.agent(bench.sweep(RANDOM))
    name = bench.beat(agent)[0]["run_id"]
    bench.start_run(name)
    bench.mutate("stopRun", "StopRunInput", "success", id=bench.run(name, "id")["id"])
    bench.stream(name, complete=True, exitcode=1)
    assert bench.run(name, "state exitcode") == {"state": "killed", "exitcode": 1}


def set_state(bench: Bench, sweep: str, state: str) -> None:
    opaque = bench.sweep_field(sweep, "id")
    bench.mutate("upsertSweep", "UpsertSweepInput", "sweep { state }", id=opaque, state=state)


def test_paused_sweep_lets_runs_end_and_hands_out_none_until_resumed(bench: Bench) -> None:
    sweep = bench.sweep(GRID)
    agent = bench.agent(sweep)
    first = bench.beat(agent)[0]
    set_state(bench, sweep, "PAUSED")
    bench.work(agent, first)
    assert bench.beat(agent) == []
    set_state(bench, sweep, "RUNNING")
    assert bench.beat(agent)[0]["type"] == "run"


def test_canceled_sweep_stops_its_runs_then_sends_its_agents_away(bench: Bench) -> None:
    sweep = bench.sweep(GRID)
    one, two = bench.agent(sweep), bench.agent(sweep)
    running, waiting = bench.beat(one)[0]["run_id"], bench.beat(two)[0]["run_id"]
    bench.start_run(running)
    bench.beat(one, running)
    set_state(bench, sweep, "CANCELED")
    assert bench.run(waiting)["state"] == "killed"
    assert bench.stream(running)["stopped"] is True
    assert bench.beat(one, running) == [{"type": "stop", "run_id": running}]
    assert bench.beat(one) == bench.beat(two) == [{"type": "exit"}]


def test_run_whose_process_comes_up_after_the_cancel_is_stopped_too(bench: Bench) -> None:
    sweep = bench.sweep(GRID)
    agent = bench.agent(sweep)
    name = bench.beat(agent)[0]["run_id"]
    set_state(bench, sweep, "CANCELED")
    bench.start_run(name)
    assert bench.stream(name)["stopped"] is True
    assert bench.beat(agent, name) == [{"type": "stop", "run_id": name}]
    bench.stream(name, complete=True, exitcode=143)
    assert bench.run(name)["state"] == "killed"


def test_killed_run_that_is_started_again_by_hand_is_not_stopped_again(bench: Bench) -> None:
    opaque = bench.start_run("r")["bucket"]["id"]
    bench.mutate("stopRun", "StopRunInput", "success", id=opaque)
    bench.stream("r", complete=True, exitcode=1)
    bench.start_run("r", id=opaque)
    assert bench.stream("r")["stopped"] is False


def test_stopped_sweep_lets_runs_end(bench: Bench) -> None:
    sweep = bench.sweep(GRID)
    agent = bench.agent(sweep)
    name = bench.beat(agent)[0]["run_id"]
    bench.start_run(name)
    set_state(bench, sweep, "FINISHED")
    assert bench.beat(agent, name) == []
    assert bench.stream(name)["stopped"] is False
    bench.stream(name, complete=True)
    assert bench.beat(agent) == [{"type": "exit"}]


def test_heartbeat_of_an_unknown_agent_is_not_found(bench: Bench) -> None:
    query = 'mutation { agentHeartbeat(input: {id: "QWdlbnQ6djE6OTk="}) { commands } }'
    assert bench.answer(query)[0] == 404


def test_agent_for_an_unknown_sweep_is_not_found(bench: Bench) -> None:
    query = 'mutation { createAgent(input: {host: "box", sweep: "nosuch"}) { agent { id } } }'
    assert bench.answer(query)[0] == 404


def test_scheduler_queue_is_handed_out_in_order_up_to_the_cap(bench: Bench) -> None:
    config = {"method": "custom", "run_cap": 2, "scheduler": {"engine": "optuna"}, "metric": {"name": "loss"}}
    sweep = bench.sweep(config)
    assert bench.run(bench.sweep_field(sweep, "controllerRunName"))["state"] == "pending"
    agent, opaque = bench.agent(sweep), bench.sweep_field(sweep, "id")
    assert bench.beat(agent) == []
    for value in (1, 2, 3):
        bench.mutate(
            "enqueueSweepRun",
            "EnqueueSweepRunInput",
            "id",
            id=opaque,
            config=f'{{"x": {{"value": {value}}}}}',
        )
    for value in (1, 2):
        command = bench.beat(agent)[0]
        assert command["args"] == {"x": {"value": value}}
        bench.work(agent, command)
    assert bench.beat(agent) == []
    set_state(bench, sweep, "FINISHED")
    assert bench.beat(agent) == [{"type": "exit"}]
    query = "query($f: JSONString) { project { runCount(filters: $f) } }"
    assert bench.ask(query, f='{"state": "killed"}')["project"]["runCount"] == 1


def test_hyperband_stops_the_worst_as_soon_as_its_row_arrives(bench: Bench) -> None:
    rule = {"type": "hyperband", "min_iter": 3, "eta": 2}
    sweep = bench.sweep({**RANDOM, "early_terminate": rule})
    agents = [bench.agent(sweep) for _ in range(4)]
    names = [bench.beat(agent)[0]["run_id"] for agent in agents]
    for name in names:
        bench.start_run(name)
    stopped = []
    for level, name in enumerate(names):
        rows = [{"loss": float(level)}, {"other": 1}, {"loss": float("nan")}, {"loss": 1.0 * level}]
        bench.log(name, 0, *rows)
        stopped.append(bench.log(name, 4, {"loss": float(level)})["stopped"])
    # eta 2: of one, two, three, four values the threshold is the best, 2nd, 2nd, 3rd best.
    assert stopped == [False, False, True, True]
    assert bench.beat(agents[3], names[3]) == [{"type": "stop", "run_id": names[3]}]
    assert bench.beat(agents[0], names[0]) == []


def test_changed_sweep_config_applies_to_what_was_logged_before(bench: Bench) -> None:
    sweep = bench.sweep(RANDOM)
    agent = bench.agent(sweep)
    name = bench.beat(agent)[0]["run_id"]
    bench.start_run(name)
    bench.log(name, 0, {"loss": 3.0, "acc": 0.5}, {"loss": 2.0, "acc": 0.75})
    assert bench.sweep_field(sweep, "bestLoss") == 2.0
    changed = {**RANDOM, "metric": {"name": "acc", "goal": "maximize"}}
    opaque = bench.sweep_field(sweep, "id")
    bench.mutate("upsertSweep", "UpsertSweepInput", "sweep { id }", id=opaque, config=json.dumps(changed))
    assert bench.sweep_field(sweep, "bestLoss") == 0.75


def test_agent_that_comes_while_another_ones_search_is_slow_is_told_to_call_again(bench: Bench) -> None:
    sweep = bench.sweep(RANDOM)
    working, free = bench.agent(sweep), bench.agent(sweep)
    name = bench.beat(working)[0]["run_id"]
    bench.start_run(name)
    with bench.backend.locks.of(1):
        assert bench.beat(working, name) == []
        assert bench.beat(free) == []
    assert bench.beat(free)[0]["type"] == "run"


def test_changed_grid_goes_on_with_the_cells_that_no_run_has_had(bench: Bench) -> None:
    sweep = bench.sweep(GRID)
    agent = bench.agent(sweep)
    for _ in range(3):
        bench.work(agent, bench.beat(agent)[0])
    larger = {**GRID, "parameters": {"lr": {"values": [0.1, 0.2]}, "b": {"values": [0, 1, 2]}}}
    opaque = bench.sweep_field(sweep, "id")
    bench.mutate("upsertSweep", "UpsertSweepInput", "sweep { id }", id=opaque, config=json.dumps(larger))
    cells = []
    while (command := bench.beat(agent)[0])["type"] == "run":
        cells.append({name: entry["value"] for name, entry in command["args"].items()})
        bench.work(agent, command)
    assert cells == [{"b": 0, "lr": 0.1}, {"b": 0, "lr": 0.2}, {"b": 2, "lr": 0.2}]
    assert bench.sweep_field(sweep) == "FINISHED"


def test_sweep_canceled_while_its_search_is_at_work_starts_no_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = bench.sweep(RANDOM)
    agent = bench.agent(sweep)

    def canceled_meanwhile(*args: Any) -> Any:
        found = suggest.suggest(*args)
        set_state(bench, sweep, "CANCELED")
        return found

    monkeypatch.setattr(heartbeat, "suggest", canceled_meanwhile)
    assert bench.beat(agent) == []
    assert bench.sweep_field(sweep, "runCount") == 0
    assert bench.beat(agent) == [{"type": "exit"}]


def make_pending(bench: Bench, name: str) -> None:
    run_id = bench.run(name, "id")["id"]
    bench.mutate("updateRunState", "UpdateRunStateInput", "success", id=run_id, state="pending")


def test_ended_run_made_pending_is_handed_out_again_and_begins_anew(bench: Bench) -> None:
    sweep = bench.sweep({**GRID, "run_cap": 2})
    agent = bench.agent(sweep)
    failed = bench.beat(agent)[0]
    bench.start_run(failed["run_id"])
    bench.log(failed["run_id"], 0, {"loss": 1.0, "_timestamp": 1.0}, {"loss": 2.0, "_timestamp": 2.0})
    bench.stream(failed["run_id"], complete=True, exitcode=1)
    bench.work(agent, bench.beat(agent)[0])
    assert bench.beat(agent) == [{"type": "exit"}]
    assert bench.sweep_field(sweep) == "FINISHED"

    make_pending(bench, failed["run_id"])
    assert bench.sweep_field(sweep) == "FINISHED"
    opaque = bench.sweep_field(sweep, "id")
    bench.mutate("upsertSweep", "UpsertSweepInput", "sweep { state }", id=opaque, state="RUNNING")
    other = bench.agent(sweep)
    again = bench.beat(other)[0]
    assert (again["run_id"], again["args"]) == (failed["run_id"], failed["args"])
    started = bench.start_run(failed["run_id"])["bucket"]
    assert (started["state"], started["historyLineCount"]) == ("running", 0)
    bench.log(failed["run_id"], 0, {"loss": 3.0, "_timestamp": 3.0})
    bench.stream(failed["run_id"], complete=True, exitcode=0)
    assert bench.run(failed["run_id"], "state historyLineCount") == {
        "state": "finished",
        "historyLineCount": 1,
    }
    assert bench.beat(other) == [{"type": "exit"}]
    assert bench.sweep_field(sweep) == "FINISHED"


def test_runs_of_another_sweep_can_count_for_this_one_as_well(bench: Bench) -> None:
    first = bench.sweep(GRID)
    agent = bench.agent(first)
    done = bench.beat(agent)[0]
    bench.work(agent, done)
    running = bench.beat(agent)[0]["run_id"]
    prior = json.dumps({"$or": [{"name": done["run_id"]}, {"name": running}]})
    second = bench.mutate(
        "upsertSweep", "UpsertSweepInput", "sweep { name }", config=json.dumps(GRID), priorRunsFilters=prior
    )["sweep"]["name"]
    query = "query($f: JSONString) { project { runs(filters: $f) { edges { node { name } } } } }"
    for sweep, count in ((first, 2), (second, 1)):
        edges = bench.ask(query, f=json.dumps({"sweep": sweep}))["project"]["runs"]["edges"]
        assert [edge["node"]["name"] for edge in edges] == [done["run_id"], running][:count]
        assert bench.sweep_field(sweep, "runCount") == count
    other = bench.agent(second)
    cells = []
    while (command := bench.beat(other)[0])["type"] == "run":
        cells.append(command["args"])
        bench.work(other, command)
    assert len(cells) == 3
    assert done["args"] not in cells
