"""Timeouts: runs of silent agents and processes, and preempted runs."""

import pytest
from server_harness import GRID, RANDOM, ServerHarness


def test_pending_run_of_an_offline_agent_goes_to_another(harness: ServerHarness) -> None:
    sweep = harness.sweep({**GRID, "parameters": {"lr": {"values": [0.1]}}})
    offline, online = harness.agent(sweep), harness.agent(sweep)
    lost = harness.beat(offline)[0]
    harness.clock.time += 100
    assert harness.beat(online) == []  # not exit: the only cell may come back
    harness.clock.time += 100
    assert harness.beat(online) == [lost]
    harness.work(online, lost)
    assert harness.sweep_field(sweep) == "FINISHED"


def test_preempted_run_is_assigned_first_as_resume(harness: ServerHarness) -> None:
    sweep = harness.sweep(GRID)
    one, two = harness.agent(sweep), harness.agent(sweep)
    first = harness.beat(one)[0]
    harness.start_run(first["run_id"])
    harness.beat(one, first["run_id"])
    harness.stream(first["run_id"], preempting=True)
    assert harness.run(first["run_id"])["state"] == "preempting"
    harness.stream(first["run_id"], preempting=True, complete=True, exitcode=143)
    assert harness.run(first["run_id"])["state"] == "preempted"
    assert harness.beat(two) == [{**first, "type": "resume"}]


def test_silent_run_crashes_after_five_minutes_and_recovers_when_it_sends(harness: ServerHarness) -> None:
    harness.start_run("silent")
    harness.clock.time += 290
    harness.run_maintenance()
    assert harness.run("silent")["state"] == "running"
    harness.clock.time += 20
    harness.run_maintenance()
    assert harness.run("silent")["state"] == "crashed"
    harness.stream("silent")
    assert harness.run("silent")["state"] == "running"


def test_silence_before_the_server_resumed_does_not_count(harness: ServerHarness) -> None:
    harness.start_run("patient")
    harness.clock.time += 10_000
    harness.server.clock.listening_since = harness.clock.time
    harness.clock.time += 290
    harness.run_maintenance()
    assert harness.run("patient")["state"] == "running"


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 86400.0])
def test_a_clock_jump_neither_crashes_live_runs_nor_hides_silent_ones(
    harness: ServerHarness, jump: float
) -> None:
    sweep = harness.sweep({**GRID, "parameters": {"lr": {"values": [0.1]}}})
    offline, online = harness.agent(sweep), harness.agent(sweep)
    waiting = harness.beat(offline)[0]
    harness.start_run("silent")
    harness.clock.time += 100
    harness.clock.set(jump)
    assert harness.beat(online) == []
    harness.run_maintenance()
    assert harness.run("silent")["state"] == "running"
    harness.clock.time += 190
    assert harness.beat(online) == [waiting]
    harness.clock.time += 190
    harness.run_maintenance()
    assert harness.run("silent")["state"] == "crashed"


def test_a_clock_set_back_a_little_crashes_no_run(harness: ServerHarness) -> None:
    sweep = harness.sweep({**GRID, "parameters": {"lr": {"values": [0.1]}}})
    offline, online = harness.agent(sweep), harness.agent(sweep)
    harness.clock.time += 10_000
    harness.beat(offline)
    harness.start_run("heard")
    harness.clock.set(-20)
    assert harness.beat(online) == []
    harness.run_maintenance()
    assert harness.run("heard")["state"] == "running"


def test_run_that_its_agent_reports_is_not_crashed(harness: ServerHarness) -> None:
    agent = harness.agent(harness.sweep(RANDOM))
    name = harness.beat(agent)[0]["run_id"]
    harness.start_run(name)
    for _ in range(5):
        harness.clock.time += 200
        harness.beat(agent, name)
        harness.run_maintenance()
    assert harness.run(name)["state"] == "running"


def test_crashed_last_run_finishes_the_sweep(harness: ServerHarness) -> None:
    sweep = harness.sweep({**RANDOM, "run_cap": 1})
    agent = harness.agent(sweep)
    harness.start_run(harness.beat(agent)[0]["run_id"])
    harness.clock.time += 400
    harness.run_maintenance()
    assert harness.sweep_field(sweep) == "FINISHED"
