"""(state, event) --> actions: which trial trains where, a trial's life, how the agent ends."""

from dataclasses import replace
from typing import Any

import pytest
from agent_world import CONFIG, GPU_0, GPU_1, exited, lines, of_kind, play, ready, running, said, trial

from kto_sweep.agent import actions as do
from kto_sweep.agent import events
from kto_sweep.agent.events import OpeningFailure
from kto_sweep.agent.shutdown import ABORT_SECONDS, SIGNAL_SECONDS
from kto_sweep.agent.state import (
    AgentOutcome,
    AgentState,
    Assignment,
    Phase,
    TrialEnd,
    TrialEndKind,
    TrialStatus,
)
from kto_sweep.agent.time_budget import Forecast
from kto_sweep.agent.trial_lifecycle import CLOSE_SECONDS, OPENING
from kto_sweep.errors import KtoSweepError
from kto_sweep.protocol import Done, Failed, Metrics, Note, Ready, SetConcurrency

DONE = Done("a", {"trial/seconds": 4.0}, 2, stopped=False)


def status(state: AgentState, slot: int = 0) -> TrialStatus:
    held = state.slots[slot].trial
    assert held is not None
    return held.status


def kinds(actions: list[do.Action]) -> list[str]:
    return [type(action).__name__ for action in actions if not isinstance(action, do.Say)]


# A trial in its slot.


def test_a_trial_passes_through_five_statuses() -> None:
    state = ready()
    state, actions = play(state, events.Commands(0, run=trial("a")))
    assert (status(state), kinds(actions)) == (TrialStatus.OPENING, ["OpenRun", "Heartbeat"])
    assert actions[-1] == do.Heartbeat(0, "gpu 0", ("a",), 0.0)
    state, actions = play(state, events.RunOpened(0, "a", "calm-wave-1", 0))
    assert (status(state), kinds(actions)) == (TrialStatus.RUNNING, ["ShowStarted", "Dispatch"])
    state, actions = play(state, said(state, "gpu 0", Metrics("a", 1, {"loss": 0.5})))
    assert actions == [do.Record("a", Metrics("a", 1, {"loss": 0.5}))]
    state, actions = play(state, said(state, "gpu 0", DONE))
    assert (status(state), kinds(actions)) == (TrialStatus.CLOSING, ["CompareInputs", "CloseRun"])
    assert of_kind(actions, do.CloseRun) == [
        do.CloseRun(0, "a", TrialEnd(TrialEndKind.FINISHED, DONE.summary))
    ]
    state, actions = play(state, events.RunClosed(0, "a", sent=True))
    assert state.slots[0].trial is None
    assert kinds(actions) == ["ShowEnded", "Heartbeat"]
    assert actions[-1] == do.Heartbeat(0, "gpu 0", (), 0.0, soon=True)
    assert (state.stats.started, state.stats.finished, state.stats.sent) == (1, 1, ((0.0, "a"),))
    state, actions = play(state, events.Commands(0, exit=True))
    assert kinds(actions) == ["CloseSlot", "EndWorker"]
    assert state.outcome is AgentOutcome.DONE


def test_a_trial_waits_until_the_worker_is_ready() -> None:
    state = running("a")
    state, _ = play(state, exited(state, "gpu 0"))
    assert status(state) is TrialStatus.READY
    state, actions = play(state, said(state, "gpu 0", Ready("GPU")))
    assert status(state) is TrialStatus.RUNNING
    assert kinds(actions) == ["Dispatch"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (DONE, TrialEndKind.FINISHED),
        (replace(DONE, stopped=True), TrialEndKind.STOPPED),
        (Failed("a", "diverged", "loss is nan", "lower it"), TrialEndKind.FAILED),
        (Failed("a", "out of memory", "too large"), TrialEndKind.FAILED),
    ],
)
def test_how_a_trial_ends(message: Any, expected: TrialEndKind) -> None:
    state = running("a")
    _, actions = play(state, said(state, "gpu 0", message))
    [close] = of_kind(actions, do.CloseRun)
    assert close.ending.kind is expected


def test_a_stopped_trial_of_successive_halving_is_paused() -> None:
    state = running("a", pauses=True)
    _, actions = play(state, said(state, "gpu 0", replace(DONE, stopped=True)))
    assert of_kind(actions, do.CloseRun)[0].ending.kind is TrialEndKind.PAUSED


def test_a_failure_that_the_trial_did_not_cause_is_retried_and_then_final() -> None:
    state, failed = running("a"), Failed("a", "network", "no network")
    for attempt, wait in enumerate((30.0, 120.0), start=1):
        state, actions = play(state, said(state, "gpu 0", failed))
        assert status(state) is TrialStatus.READY
        assert state.slots[0].trial is not None
        assert (state.slots[0].trial.failures, state.slots[0].trial.not_before) == (attempt, wait)
        assert lines(actions) == ["  run a: network: no network; retrying"]
        state, actions = play(state, events.Tick(), now=wait - 1)
        assert not of_kind(actions, do.Dispatch)
        state, actions = play(state, events.Tick(), now=wait)
        assert of_kind(actions, do.Dispatch)
    state, actions = play(state, said(state, "gpu 0", failed))
    assert of_kind(actions, do.CloseRun)[0].ending.kind is TrialEndKind.FAILED


def test_a_configuration_that_cannot_be_trained_fails_without_a_worker() -> None:
    bad = Assignment.from_config("a", CONFIG | {"batch_size": 0})
    state, _ = play(ready(), events.Commands(0, run=bad))
    state, actions = play(state, events.RunOpened(0, "a", "calm-wave-1", 0))
    assert not of_kind(actions, do.Dispatch)
    [close] = of_kind(actions, do.CloseRun)
    assert (close.ending.kind, close.ending.cause) == (TrialEndKind.FAILED, "bad config")
    assert "0 is not a batch size" in close.ending.text


def test_late_messages_about_a_closing_trial_change_nothing() -> None:
    state = running("a")
    state, _ = play(state, said(state, "gpu 0", DONE))
    after, actions = play(state, said(state, "gpu 0", Note("a", "bye")), said(state, "gpu 0", DONE))
    assert not kinds(actions)
    assert after.stats == state.stats


def test_a_run_that_does_not_close_is_abandoned_after_patience() -> None:
    state = running("a", patience=100.0)
    state, _ = play(state, said(state, "gpu 0", DONE))
    state, actions = play(state, events.Tick(), now=100.0 + CLOSE_SECONDS)
    assert not lines(actions)
    state, actions = play(state, events.Tick(), now=100.1 + CLOSE_SECONDS)
    assert lines(actions) == ["  run a ended, but the server did not confirm it"]
    assert state.stats.unsent == ("a",)
    state, actions = play(state, events.RunClosed(0, "a", sent=True))
    assert not of_kind(actions, do.ShowEnded)
    assert not state.stats.sent


# Opening runs.


def test_a_run_that_cannot_be_opened_is_retried_and_the_slot_asks_for_no_other() -> None:
    state, _ = play(ready(), events.Commands(0, run=trial("a")))
    for failures in range(1, 7):
        wait = OPENING.delay(failures)
        state, actions = play(state, events.RunNotOpened(0, "a", OpeningFailure.ERROR, "403 Forbidden"))
        assert status(state) is TrialStatus.QUEUED
        assert lines(actions) == [f"run a was not started: 403 Forbidden; next attempt in {wait:.0f} s"]
        assert state.slots[0].ask_after == wait
        state, actions = play(state, events.Tick(), now=wait)
        assert kinds(actions) == ["OpenRun"]


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (OpeningFailure.TAKEN, "run a skipped: why"),
        (OpeningFailure.GIVEN_BACK, "run a was not started: why"),
    ],
)
def test_a_trial_that_another_agent_has_is_dropped_at_once(failure: OpeningFailure, line: str) -> None:
    state, _ = play(ready(), events.Commands(0, run=trial("a")))
    state, actions = play(state, events.RunNotOpened(0, "a", failure, "why"))
    assert (state.slots[0].trial, state.stats.started, lines(actions)) == (None, 0, [line])
    assert of_kind(actions, do.Heartbeat)[-1].running == ()


def test_a_run_sent_again_while_it_is_closing_opens_afterwards() -> None:
    state = running("a", "b")
    state, _ = play(state, said(state, "gpu 0", replace(DONE, run_id="b", stopped=True)))
    state, _ = play(state, said(state, "gpu 0", DONE), events.RunClosed(0, "a", sent=True))
    state, actions = play(state, events.Commands(0, run=trial("b")))
    assert status(state, 0) is TrialStatus.QUEUED
    assert not of_kind(actions, do.OpenRun)
    state, actions = play(state, events.RunClosed(1, "b", sent=True))
    assert of_kind(actions, do.OpenRun)


def test_a_run_that_the_server_sends_twice_is_trained_once() -> None:
    state = ready(slots=2)
    state, _ = play(state, events.Commands(0, run=trial("a")))
    state, actions = play(state, events.Commands(1, run=trial("a")))
    assert state.slots[1].trial is None
    assert kinds(actions) == ["Heartbeat"]


def test_on_a_full_disk_a_trial_waits_and_one_message_is_printed() -> None:
    state = running("a")
    full = events.DiskFull(0, "a", "the disk of home has 3 MiB free")
    state, actions = play(state, full)
    assert status(state) is TrialStatus.READY
    assert lines(actions) == ["run a is waiting for disk space: the disk of home has 3 MiB free"]
    state, _ = play(state, events.Tick(), now=1.0)
    state, actions = play(state, full, now=1.0)
    assert not lines(actions)


# Slots.


def test_workers_set_the_number_of_slots() -> None:
    state = running("a", adjusts_slots=True)
    state, actions = play(state, said(state, "gpu 0", SetConcurrency(3, "2 more are worth it")))
    assert lines(actions) == ["gpu 0: 2 more are worth it"]
    assert [beat.slot for beat in of_kind(actions, do.Heartbeat)] == [1, 2]
    state, actions = play(state, said(state, "gpu 0", SetConcurrency(1, "")))
    assert [close.slot for close in of_kind(actions, do.CloseSlot)] == [1, 2]


def test_a_fixed_number_of_slots_does_not_change() -> None:
    state = running("a")
    state, actions = play(state, said(state, "gpu 0", SetConcurrency(3, "2 more are worth it")))
    assert len(state.slots) == 1
    assert not actions


def test_at_most_count_trials_are_started() -> None:
    state = running("a", count=1)
    state, _ = play(state, said(state, "gpu 0", DONE))
    state, actions = play(state, events.RunClosed(0, "a", sent=True))
    assert not of_kind(actions, do.Heartbeat)
    assert state.outcome is AgentOutcome.DONE


def test_after_five_failures_and_no_success_no_trial_starts() -> None:
    state, said_then = ready(), []
    for number in range(5):
        run_id = f"run{number}"
        state, actions = play(
            state, events.Commands(0, run=trial(run_id)), events.RunOpened(0, run_id, "", 0),
            said(state, "gpu 0", Failed(run_id, "diverged", "nan")), events.RunClosed(0, run_id, sent=True),
        )  # fmt: skip
        said_then += lines(actions)
    assert said_then == ["5 trials failed and none succeeded: not starting new trials"]
    assert state.outcome is AgentOutcome.DONE


@pytest.mark.parametrize(("seconds", "begins"), [(90.0, True), (110.0, False)])
def test_with_a_budget_only_trials_that_can_finish_in_time_start(seconds: float, begins: bool) -> None:
    forecast = Forecast(lambda trial, done, together: (10, seconds))
    state = replace(ready(), forecast=forecast, time_left=100.0)
    state, actions = play(state, events.Commands(0, run=trial("a")))
    assert (state.slots[0].trial is not None) is begins
    assert state.stats.out_of_time is not begins
    if not begins:
        [line] = lines(actions)
        assert line.startswith("run a was not started (2 min left, needs 2 min)")
        assert state.outcome is AgentOutcome.DONE


def test_trials_of_dead_agents_come_before_new_ones() -> None:
    state = ready(slots=1, requeued=[trial("left")])
    assert state.slots[0].trial is not None
    assert state.slots[0].trial.run_id == "left"
    assert state.stats.started == 1


# Stops.


@pytest.mark.parametrize("event", [events.StopRequested("a"), events.Commands(0, stop=("a",))])
def test_a_running_trial_gets_a_stop_order_and_a_ready_one_is_closed(event: events.Event) -> None:
    state = running("a")
    _, actions = play(state, event)
    assert of_kind(actions, do.RequestStop) == [do.RequestStop("gpu 0", "a")]
    state, _ = play(state, events.DiskFull(0, "a", "full"))
    state, actions = play(state, event)
    assert of_kind(actions, do.CloseRun)[0].ending.kind is TrialEndKind.STOPPED
    assert state.stats.stopped == 1


@pytest.mark.parametrize("event", [events.StopRequested("b"), events.Commands(0, stop=("b",))])
def test_the_slot_of_a_trial_that_is_stopped_before_it_starts_asks_for_the_next(event: events.Event) -> None:
    state, _ = play(ready(slots=2), events.Commands(1, run=trial("b")))
    state, _ = play(state, events.RunNotOpened(1, "b", OpeningFailure.ERROR, "no answer"))
    state, actions = play(state, event)
    assert state.slots[1].trial is None
    assert 1 in [beat.slot for beat in of_kind(actions, do.Heartbeat)]


# The end.


def test_a_signal_requeues_the_trials_and_ends_the_agent() -> None:
    state = running("a", "b")
    state, _ = play(state, events.DiskFull(1, "b", "full"))
    state, actions = play(state, events.SignalReceived(15))
    assert of_kind(actions, do.RequestStop) == [do.RequestStop("gpu 0", "a")]
    assert of_kind(actions, do.CloseRun) == [do.CloseRun(1, "b", TrialEnd(TrialEndKind.PREEMPTED))]
    state, actions = play(state, said(state, "gpu 0", replace(DONE, stopped=True)))
    assert of_kind(actions, do.CloseRun) == [do.CloseRun(0, "a", TrialEnd(TrialEndKind.PREEMPTED))]
    state, _ = play(state, events.RunClosed(0, "a", sent=True), events.RunClosed(1, "b", sent=True))
    assert (state.outcome, state.stats.interrupted) == (AgentOutcome.DONE, 15)


def test_a_trial_that_ends_during_the_grace_time_is_finished() -> None:
    state, _ = play(running("a"), events.SignalReceived(2))
    _, actions = play(state, said(state, "gpu 0", DONE))
    assert of_kind(actions, do.CloseRun)[0].ending.kind is TrialEndKind.FINISHED


@pytest.mark.parametrize(
    ("event", "now"), [(events.SignalReceived(2), 1.0), (events.Tick(), 60.1)], ids=["again", "overdue"]
)
def test_a_second_signal_or_the_end_of_the_grace_time_kills_workers(event: events.Event, now: float) -> None:
    state, _ = play(running("a"), events.SignalReceived(2))
    state, actions = play(state, event, now=now)
    assert of_kind(actions, do.EndWorker) == [do.EndWorker("gpu 0", at_once=True)]
    assert state.outcome is AgentOutcome.KILLED


def test_when_time_is_up_trials_are_requeued() -> None:
    state, actions = play(running("a"), events.Tick(time_left=0.0))
    assert lines(actions) == ["Time is up: stopping trials after their current step"]
    assert (state.phase, state.stats.time_is_up) == (Phase.SHUTTING_DOWN, True)


def test_an_error_requeues_open_runs_within_seconds_and_ends_the_agent() -> None:
    error = KtoSweepError("the sweep was deleted on the server")
    state, actions = play(running("a"), events.SweepGone(error))
    assert of_kind(actions, do.CloseRun) == [do.CloseRun(0, "a", TrialEnd(TrialEndKind.PREEMPTED))]
    assert of_kind(actions, do.EndWorker)
    after, _ = play(state, events.RunClosed(0, "a", sent=True))
    assert (after.outcome, after.error) == (AgentOutcome.ERROR, error)
    late, _ = play(state, events.Tick(), now=ABORT_SECONDS + 0.1)
    assert late.outcome is AgentOutcome.ERROR


def test_a_run_that_opens_while_the_agent_aborts_is_requeued() -> None:
    state, _ = play(ready(), events.Commands(0, run=trial("a")), events.SweepGone(KtoSweepError("gone")))
    _, actions = play(state, events.RunOpened(0, "a", "calm-wave-1", 0))
    assert of_kind(actions, do.CloseRun) == [do.CloseRun(0, "a", TrialEnd(TrialEndKind.PREEMPTED))]


def test_without_wandbs_service_another_process_continues_unless_a_signal_follows() -> None:
    lost, actions = play(running("a", count=3), events.ServiceGone())
    assert not kinds(actions), "nothing can be sent"
    state, _ = play(lost, events.Tick(), now=SIGNAL_SECONDS + 0.1)
    assert (state.outcome, state.trials_left) == (AgentOutcome.RESTART, 3)
    state, actions = play(lost, events.SignalReceived(15), now=1.0)
    assert of_kind(actions, do.RequestStop) == [do.RequestStop("gpu 0", "a")]
    state, _ = play(state, said(state, "gpu 0", replace(DONE, stopped=True)))
    assert state.outcome is AgentOutcome.KILLED


def test_a_moved_server_makes_another_process_continue() -> None:
    state, actions = play(running("a"), events.ServerMoved("http://127.0.0.1:2"))
    assert kinds(actions) == ["EndService"]
    assert "the server moved to http://127.0.0.1:2" in str(state.error)


def test_devices_are_independent() -> None:
    state = running("a", "b", devices=[GPU_0, GPU_1])
    state, _ = play(
        state, said(state, "gpu 1", replace(DONE, run_id="b")), events.RunClosed(1, "b", sent=True)
    )
    state, actions = play(state, events.Commands(1, exit=True))
    assert of_kind(actions, do.EndWorker) == [do.EndWorker("gpu 1", at_once=False)]
    assert state.outcome is None
