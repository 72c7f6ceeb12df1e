"""The states that the page shows, and the actions that its buttons may take."""

from typing import Any

import pytest
from server_harness import GRID, RANDOM, ServerHarness

from kto_sweep.server import dashboard_actions, dashboard_data
from kto_sweep.server.dashboard_comparison import ComparisonCache
from kto_sweep.server.errors import RequestError
from kto_sweep.server.store import projects, runs, sweeps
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_view import StatusCache, sweep_view
from kto_sweep.sweep.sweep_state import read_sweep_status


def find(harness: ServerHarness, name: str) -> Sweep:
    connection = harness.server.database.reader()
    project = projects.find(connection, None, None)
    assert project
    sweep = sweeps.find(connection, project.id, name)
    assert sweep
    return sweep


def facts(harness: ServerHarness, name: str) -> dict[str, Any]:
    """The page's facts of a sweep."""
    connection, sweep = harness.server.database.reader(), find(harness, name)
    status = StatusCache().of(connection, harness.server, sweep)
    overview = ComparisonCache().overview(status)
    return dashboard_data.sweep_facts(connection, harness.server, sweep, status, overview)


def trial_states(harness: ServerHarness, name: str) -> dict[str, str]:
    """The state of each run on the page."""
    view = sweep_view(harness.server.database.reader(), harness.server, find(harness, name))
    places = ComparisonCache().places(read_sweep_status(view))
    return {run_id: place["state"] for run_id, place in places.items()}


def take(harness: ServerHarness, name: str, action: str) -> None:
    """Press a button."""
    change = dashboard_actions.of_sweep(harness.server, find(harness, name), {"action": action})
    harness.server.database.write(change)


def begin(harness: ServerHarness, sweep: str, agent: str) -> str:
    """The agent's next run, started and with one row."""
    run_id = str(harness.beat(agent)[0]["run_id"])
    harness.start_run(run_id, sweep=sweep)
    harness.log(run_id, 0, {"loss": 1.0})
    return run_id


def test_a_silent_trial_is_interrupted_long_before_it_counts_as_crashed(harness: ServerHarness) -> None:
    sweep = harness.sweep(GRID)
    run_id = begin(harness, sweep, harness.agent(sweep))
    assert trial_states(harness, sweep) == {run_id: "running"}
    harness.clock.time += 91
    now = facts(harness, sweep)
    assert (trial_states(harness, sweep), now["shown_state"]) == ({run_id: "interrupted"}, "interrupted")
    assert now["state"] == "running"
    assert now["next"] == f"kto-sweep agent local/uncategorized/{sweep}"


def test_cancel_stops_the_last_trials_of_a_stopped_sweep(harness: ServerHarness) -> None:
    sweep = harness.sweep(RANDOM)
    agent = harness.agent(sweep)
    run_id = begin(harness, sweep, agent)
    take(harness, sweep, "stop")
    assert facts(harness, sweep)["shown_state"] == "stopping"
    take(harness, sweep, "cancel")
    assert facts(harness, sweep)["shown_state"] == "canceling"
    assert harness.beat(agent, run_id) == [{"type": "stop", "run_id": run_id}]
    harness.stream(run_id, complete=True, exitcode=1)
    now = facts(harness, sweep)
    assert (now["shown_state"], now["ended_by"]["kind"]) == ("canceled", "cancel")
    assert trial_states(harness, sweep) == {run_id: "canceled"}


def test_resume_trains_what_a_cancel_ended(harness: ServerHarness) -> None:
    sweep = harness.sweep(RANDOM)
    agent = harness.agent(sweep)
    run_id = begin(harness, sweep, agent)
    take(harness, sweep, "cancel")
    harness.stream(run_id, complete=True, exitcode=1)
    take(harness, sweep, "resume")
    assert harness.beat(agent)[0]["run_id"] == run_id


def test_a_sweep_resumed_before_any_agent_is_pending(harness: ServerHarness) -> None:
    sweep = harness.sweep(GRID)
    take(harness, sweep, "cancel")
    take(harness, sweep, "resume")
    now = facts(harness, sweep)
    assert (now["shown_state"], now["next"]) == ("pending", f"kto-sweep agent local/uncategorized/{sweep}")
    harness.agent(sweep)
    assert facts(harness, sweep)["shown_state"] == "running"


def test_a_button_is_refused_with_what_to_do_instead(harness: ServerHarness) -> None:
    sweep = harness.sweep(GRID)
    with pytest.raises(
        RequestError, match=f"no agent has started it; instead: kto-sweep cancel local/uncategorized/{sweep}"
    ):
        take(harness, sweep, "pause")
    take(harness, sweep, "stop")
    assert facts(harness, sweep)["actions"]["cancel"] is not None
    with pytest.raises(RequestError, match="it is stopped: no trial of it runs or waits"):
        take(harness, sweep, "cancel")


def test_the_run_that_reached_the_target_is_named(harness: ServerHarness) -> None:
    sweep = harness.sweep(RANDOM | {"metric": {"name": "loss", "goal": "minimize", "target": 0.5}})
    run_id = begin(harness, sweep, harness.agent(sweep))
    harness.log(run_id, 1, {"loss": 0.4})
    content = ['{"_step": 1, "loss": 0.4}']
    harness.stream(run_id, files={"wandb-summary.json": {"offset": 0, "content": content}})
    harness.stream(run_id, complete=True, exitcode=0)
    now = facts(harness, sweep)
    assert (now["shown_state"], now["next"]) == ("finished", f"kto-sweep compare local/uncategorized/{sweep}")
    assert now["ended_by"] == {
        "kind": "target",
        "text": f"run {run_id} reached the target: loss 0.4 <= 0.5",
        "run_id": run_id,
        "value": 0.4,
    }


def test_a_cached_status_follows_runs_and_heartbeats(harness: ServerHarness) -> None:
    sweep, cache, connection = harness.sweep(GRID), StatusCache(), harness.server.database.reader()
    run_id = begin(harness, sweep, harness.agent(sweep))

    def state() -> str:
        return cache.of(connection, harness.server, find(harness, sweep)).state

    assert state() == "running"
    harness.clock.time += 91
    assert state() == "interrupted"
    harness.stream(run_id)
    assert state() == "running"
    before = cache.of(connection, harness.server, find(harness, sweep))
    assert cache.of(connection, harness.server, find(harness, sweep)) is before  # nothing changed
    harness.clock.time += 6
    assert cache.of(connection, harness.server, find(harness, sweep)) is not before  # a heartbeat may be old
    harness.stream(run_id, preempting=True)
    harness.stream(run_id, complete=True, exitcode=1)
    assert runs.of_sweep(connection, find(harness, sweep).id)[0].state == "preempted"
    assert state() == "interrupted"
