"""The shown state of a trial follows from its run, its sweep and the server's clock."""

from dataclasses import replace

import pytest

from kto_sweep.errors import FailureCause
from kto_sweep.search.space import Space
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.trial_state import TrialState, state_of
from kto_sweep.sweep.view import SweepView, TrialRecord

NOW = 1_000_000.0
QUEUED, RUNNING, INTERRUPTED, PAUSED, FINISHED, STOPPED, FAILED, CANCELED, _ = TrialState


def trial(state, age=0.0, *, step=9, cause=None, device="home cpu", run_id="a", paused=False):
    """A run whose last heartbeat is `age` seconds old."""
    summary = {"_step": step} if step is not None else {}
    summary |= {} if cause is None else {"failure/cause": cause}
    return TrialRecord(
        run_id, run_id, state, {}, summary, None, heartbeat=NOW - age, device=device, paused=paused
    )


def view(*trials, state="RUNNING", now=NOW, **more):
    ref = SweepRef("local", "kto-sweep", "s")
    sweep = SweepView(ref, "", "s", state, "random", "loss", "minimize", Space(()), None, trials, now=now)
    return replace(sweep, **more)


def shown(sweep):
    return [state_of(sweep, trial) for trial in sweep.trials]


@pytest.mark.parametrize(
    ("state", "age", "expected"),
    [
        ("running", 0, RUNNING),
        ("running", 90, RUNNING),
        ("running", 91, INTERRUPTED),
        ("running", -3600, INTERRUPTED),  # before the server's clock was set back
        ("preempting", 10, RUNNING),
        ("preempted", 0, INTERRUPTED),
        ("pending", 10, QUEUED),
        ("pending", 31, INTERRUPTED),
        ("crashed", 400, INTERRUPTED),
        ("finished", 400, FINISHED),
        ("failed", 0, FAILED),
        ("killed", 0, STOPPED),
    ],
)
def test_a_trial_runs_only_while_its_agent_sends_heartbeats(state, age, expected):
    assert shown(view(trial(state, age))) == [expected]


@pytest.mark.parametrize("state", ["preempted", "pending"])
def test_a_waiting_trial_is_queued_while_an_agent_is_alive(state):
    assert shown(view(trial(state, 600), trial("running", 20))) == [QUEUED, RUNNING]
    assert shown(view(trial(state, 600), trial("running", 200))) == [INTERRUPTED, INTERRUPTED]
    assert shown(view(trial(state, 600), trial("running", 20), state="FINISHED")) == [INTERRUPTED, RUNNING]


def test_without_the_servers_clock_no_heartbeat_is_old():
    assert shown(view(trial("running", 9999), now=None)) == [RUNNING]


def test_the_boxs_own_clock_does_not_matter(monkeypatch):
    monkeypatch.setattr("time.time", lambda: NOW + 86400)
    assert shown(view(trial("running", 20))) == [RUNNING]


def test_a_crashed_run_of_another_program_has_failed():
    assert shown(view(trial("crashed", 400, device=""))) == [FAILED]
    assert shown(view(trial("crashed", 400, cause=FailureCause.NETWORK))) == [FAILED]


def test_what_successive_halving_paused_counts_as_stopped_once_the_sweep_is_over():
    paused = trial("preempted", 600, paused=True)
    assert shown(view(paused, pauses_trials=True)) == [PAUSED]
    assert shown(view(paused, pauses_trials=True, state="FINISHED")) == [STOPPED]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (trial("killed", 50), CANCELED),
        (trial("killed", 200), STOPPED),  # by early termination, before the cancel
        (trial("killed", 200, cause=FailureCause.PREEMPTED), CANCELED),
        (trial("killed", 200, step=None), CANCELED),
        (trial("preempted", 200), CANCELED),
        (trial("crashed", 400), CANCELED),
        (trial("finished", 200), FINISHED),
        (trial("failed", 200), FAILED),
    ],
)
def test_a_cancel_is_told_from_an_early_stop(run, expected):
    assert shown(view(run, state="CANCELED", stops_trials=True, updated=NOW - 100)) == [expected]


def test_without_early_termination_a_killed_run_of_a_canceled_sweep_was_canceled():
    assert shown(view(trial("killed", 200), state="CANCELED", updated=NOW - 100)) == [CANCELED]


def test_a_run_that_was_killed_before_its_first_step_is_not_done():
    assert shown(view(trial("killed", 200, step=None), state="FINISHED")) == [CANCELED]


def test_every_state_has_a_meaning():
    assert all(state.meaning for state in TrialState)
