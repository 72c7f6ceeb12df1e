"""What becomes of the runs of agents and processes that fall silent, and of those that are preempted."""

import pytest
from server_bench import GRID, RANDOM, Bench


def test_waiting_run_of_a_vanished_agent_goes_to_another_and_is_not_lost(bench: Bench) -> None:
    sweep = bench.sweep({**GRID, "parameters": {"lr": {"values": [0.1]}}})
    gone, here = bench.agent(sweep), bench.agent(sweep)
    lost = bench.beat(gone)[0]
    bench.clock.time += 100
    assert bench.beat(here) == []  # not exit: the only cell may come back
    bench.clock.time += 100
    assert bench.beat(here) == [lost]
    bench.work(here, lost)
    assert bench.sweep_field(sweep) == "FINISHED"


def test_preempted_run_is_handed_out_first_as_resume(bench: Bench) -> None:
    sweep = bench.sweep(GRID)
    one, two = bench.agent(sweep), bench.agent(sweep)
    first = bench.beat(one)[0]
    bench.start_run(first["run_id"])
    bench.beat(one, first["run_id"])
    bench.stream(first["run_id"], preempting=True)
    assert bench.run(first["run_id"])["state"] == "preempting"
    bench.stream(first["run_id"], preempting=True, complete=True, exitcode=143)
    assert bench.run(first["run_id"])["state"] == "preempted"
    assert bench.beat(two) == [{**first, "type": "resume"}]


def test_silent_run_crashes_after_five_minutes_and_comes_back_when_heard(bench: Bench) -> None:
    bench.start_run("silent")
    bench.clock.time += 290
    bench.round()
    assert bench.run("silent")["state"] == "running"
    bench.clock.time += 20
    bench.round()
    assert bench.run("silent")["state"] == "crashed"
    bench.stream("silent")
    assert bench.run("silent")["state"] == "running"


def test_silence_before_the_server_woke_up_does_not_count(bench: Bench) -> None:
    bench.start_run("patient")
    bench.clock.time += 10_000
    bench.backend.uptime.awake_since = bench.clock.time
    bench.clock.time += 290
    bench.round()
    assert bench.run("patient")["state"] == "running"


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 86400.0])
def test_a_clock_that_is_set_makes_nobody_silent_and_hides_nobody_who_is(bench: Bench, jump: float) -> None:
    sweep = bench.sweep({**GRID, "parameters": {"lr": {"values": [0.1]}}})
    gone, here = bench.agent(sweep), bench.agent(sweep)
    waiting = bench.beat(gone)[0]
    bench.start_run("silent")
    bench.clock.time += 100
    bench.clock.set(jump)
    assert bench.beat(here) == []
    bench.round()
    assert bench.run("silent")["state"] == "running"
    bench.clock.time += 190
    assert bench.beat(here) == [waiting]
    bench.clock.time += 190
    bench.round()
    assert bench.run("silent")["state"] == "crashed"


def test_a_clock_that_is_set_back_a_little_makes_nobody_silent(bench: Bench) -> None:
    sweep = bench.sweep({**GRID, "parameters": {"lr": {"values": [0.1]}}})
    gone, here = bench.agent(sweep), bench.agent(sweep)
    bench.clock.time += 10_000
    bench.beat(gone)
    bench.start_run("heard")
    bench.clock.set(-20)
    assert bench.beat(here) == []
    bench.round()
    assert bench.run("heard")["state"] == "running"


def test_run_whose_agent_still_reports_it_has_not_crashed(bench: Bench) -> None:
    agent = bench.agent(bench.sweep(RANDOM))
    name = bench.beat(agent)[0]["run_id"]
    bench.start_run(name)
    for _ in range(5):
        bench.clock.time += 200
        bench.beat(agent, name)
        bench.round()
    assert bench.run(name)["state"] == "running"


def test_crashed_last_run_ends_the_sweep(bench: Bench) -> None:
    sweep = bench.sweep({**RANDOM, "run_cap": 1})
    agent = bench.agent(sweep)
    bench.start_run(bench.beat(agent)[0]["run_id"])
    bench.clock.time += 400
    bench.round()
    assert bench.sweep_field(sweep) == "FINISHED"
